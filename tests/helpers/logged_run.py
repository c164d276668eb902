"""A run folder as the training loop writes it, from made-up losses; without torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from drpruning.common.files import dumps
from drpruning.common.unknown import record_fields
from drpruning.recipe import Recipe, load_recipe
from drpruning.runs.policy import hand_over, phase_policy
from drpruning.runs.reference_losses import MeasuredModel, ReferenceLosses

SHARES = {"web": 0.6, "code": 0.3, "wiki": 0.1}
REFERENCE = {"web": 2.0, "code": 1.0, "wiki": 1.5}
FINAL = 400_000.0


def losses_at(phase: str, done: float) -> dict[str, float]:
    """Losses [nats] after this share of a phase: smooth, of different speed a domain."""
    level = 0.6 if phase == "prune" else 0.3
    speed = {"web": 0.2, "code": 0.5, "wiki": 0.9}
    return {name: REFERENCE[name] + level * (0.05 + done) ** -rate for name, rate in speed.items()}


def realised_shares(ratio: Mapping[str, float], blocks: int) -> dict[str, float]:
    """Shares of so many blocks, which are counted whole: the largest domain takes the rest."""
    counts = {name: int(share * blocks) for name, share in ratio.items()}
    counts[max(ratio, key=lambda name: ratio[name])] += blocks - sum(counts.values())
    return {name: count / blocks for name, count in counts.items()}


class LoggedRun:
    """Writes a run folder as the training loop does, from made-up losses."""

    def __init__(self, folder: Path, phases: tuple[str, ...], **scheduling: Any) -> None:
        self.folder = folder
        self.records: list[dict[str, Any]] = []
        folder.mkdir(parents=True)
        values: dict[str, Any] = {
            "model": {"source": "nowhere"},
            "data": {"domains": {n: {"source": n, "share": s} for n, s in SHARES.items()}},
            "scheduling": scheduling,
            "output": str(folder),
        }
        if "prune" in phases:
            values["model"]["target"] = {"num_layers": 2}
            values["prune"] = {"steps": 100, "evaluate_every": 10}
        if "pretrain" in phases:
            values["pretrain"] = {"steps": 240, "evaluate_every": 20}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        self.recipe = load_recipe(folder / "recipe.yaml")
        self.recipe_file().write_text(self.recipe.to_yaml())
        if (models := self.recipe.scheduling.reference_models) is not None:
            measured = [MeasuredModel(path, 1, dict(REFERENCE)) for path in models.models]
            ReferenceLosses(models=measured, reference_loss=REFERENCE).write(folder)
        if self.recipe.reference_origin == "source":
            losses = {name: loss - 0.001 for name, loss in losses_at("prune", 0).items()}
            ReferenceLosses.of_pruned_model("nowhere", 1, losses).write(folder)
        self._train(self.recipe)

    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    def _train(self, recipe: Recipe) -> None:
        ended: Mapping[str, Any] | None = None
        for name, phase in recipe.phases.items():
            policy = phase_policy(recipe, phase, FINAL)
            if ended is not None and recipe.scheduling.handover == "continue":
                hand_over(policy, ended)
            self.records.append(self._start(name, phase.steps))
            ratio: dict[str, float] | None = None
            for step in range(0, phase.steps + 1, phase.evaluate_every):
                done = step / phase.steps
                losses = losses_at(name, done)
                if step == 7 * phase.evaluate_every:
                    losses["code"] = math.nan
                params = FINAL * (2 - min(1, 5 * done)) if name == "prune" else FINAL
                shares = ratio and realised_shares(ratio, 8 * phase.evaluate_every)
                decision = policy.update(step, losses, params, shares)
                ratio = decision.ratio
                self.records.append(
                    {
                        "kind": "eval",
                        "phase": name,
                        "step": step,
                        "time": 1.0 * step,
                        "loss": losses,
                        **record_fields(decision),
                        "realised_share": shares,
                        "parameters": params,
                    }
                )
            self.records.append(self._end(name, phase.steps))
            ended = json.loads(json.dumps(policy.state_dict()))
        self.write()

    def _start(self, phase: str, steps: int) -> dict[str, Any]:
        return {
            "kind": "start",
            "phase": phase,
            "step": 0,
            "time": 0.0,
            "total_steps": steps,
            "global_batch": 8,
            "sequence_length": 16,
            "parameters": 2 * FINAL,
            "final_parameters": FINAL,
            "versions": {"drpruning": "0.1.0"},
            "commit": None,
        }

    def _end(self, phase: str, steps: int) -> dict[str, Any]:
        return {
            "kind": "end",
            "phase": phase,
            "step": steps,
            "time": 1.0 * steps,
            "total_seconds": 1.0 * steps,
            "tokens": steps * 128,
            "stopped": None,
        }

    def evals(self, phase: str) -> list[dict[str, Any]]:
        """The evaluations of a phase, to be changed before `write`."""
        return [r for r in self.records if r["kind"] == "eval" and r["phase"] == phase]

    def write(self) -> "LoggedRun":
        lines = (dumps(record) + "\n" for record in self.records)
        (self.folder / "metrics.jsonl").write_text("".join(lines))
        return self
