"""A synthetic run folder: the files of docs/run-folder.md with numbers that follow from a seed."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from drpruning.runs.folder import RunFolder
from drpruning.runs.task_results import TaskKey, TaskResult, TaskScore, write_task_result

DOMAINS = ("web", "code", "papers", "talk", "wiki")
GRANULARITIES = {"layer": 0.25, "hidden": 0.375, "head": 0.375, "intermediate": 0.375}
PARAMETERS = {
    "source": {"total": 8_507_648, "embedding": 2_097_152, "other": 6_410_496},
    "pruned": {"total": 3_197_920, "embedding": 1_310_720, "other": 1_887_200},
    "model": {"total": 3_197_920, "embedding": 1_310_720, "other": 1_887_200},
}


class FakeRun:
    """Writes a run folder piece by piece."""

    def __init__(
        self, folder: Path, domains: Sequence[str] = DOMAINS, *, policy: str = "drpruning"
    ) -> None:
        self.folder = folder
        self.domains = list(domains)
        self.policy = policy
        self.random = random.Random(f"{policy}{len(domains)}")
        weights = (
            [0.5, *[0.5 / (len(domains) - 1)] * (len(domains) - 1)] if len(domains) > 1 else [1.0]
        )
        self.share = dict(zip(self.domains, weights, strict=True))
        folder.mkdir(parents=True, exist_ok=True)

    def everything(self) -> "FakeRun":
        self.recipe()
        self.metrics("prune", total_steps=400, every=20)
        self.metrics("pretrain", total_steps=800, every=50)
        self.evaluations()
        self.plan()
        self.similarity()
        return self

    def recipe(self) -> None:
        recipe = {
            "model": {
                "source": "models/base-8m",
                "target": {
                    "num_layers": 6,
                    "hidden_size": 160,
                    "intermediate_size": 440,
                    "num_heads": 5,
                    "num_kv_heads": None,
                },
            },
            "data": {
                "domains": {
                    name: {"source": f"data/{name}/*.jsonl", "share": share}
                    for name, share in self.share.items()
                }
            },
            "scheduling": {"policy": self.policy},
            "prune": {"steps": 400},
            "pretrain": {"steps": 800},
            "output": str(self.folder.name),
        }
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        (self.folder / "recipe.yaml").write_text(text, encoding="utf-8")

    def metrics(
        self, phase: str, *, total_steps: int, every: int, until: int | None = None
    ) -> None:
        """Append the records of one phase up to ``until`` (complete where it is None)."""
        records = [self.start(phase, total_steps)]
        ratio = dict(self.share)
        reference = dict(self.share)
        data = dict.fromkeys(self.domains, 0.0)
        for step in range(0, (total_steps if until is None else until) + 1, 10):
            if step:
                records.append(self.step(phase, step, total_steps))
            if step % every == 0:
                point = self.evaluation_point(phase, step, total_steps, ratio, reference)
                if step:
                    data = {name: had + every * ratio[name] for name, had in data.items()}
                point["data"] = data
                ratio, reference = point["ratio"], point["reference_ratio"]
                records.append(point)
        if until is None:
            records.append(
                {
                    "kind": "end",
                    "phase": phase,
                    "step": total_steps,
                    "time": 1000.0 + total_steps,
                    "total_seconds": float(total_steps),
                    "tokens": total_steps * 4096,
                }
            )
        self.append(*records)

    def append(self, *records: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def start(self, phase: str, total_steps: int) -> dict[str, Any]:
        return {
            "kind": "start",
            "phase": phase,
            "step": 0,
            "time": 1000.0,
            "total_steps": total_steps,
            "global_batch": 16,
            "sequence_length": 256,
            "parameters": 8_507_648,
            "versions": {"drpruning": "0.1.0", "torch": "2.13.0"},
            "commit": "0123abcd",
        }

    def step(self, phase: str, step: int, total_steps: int) -> dict[str, Any]:
        level = 3.3 + 1.2 * math.exp(-step / 100) + self.random.gauss(0, 0.03)
        record: dict[str, Any] = {
            "kind": "step",
            "phase": phase,
            "step": step,
            "time": 1000.0 + step,
            "loss": level,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "tokens": step * 4096,
            "tokens_per_second": 4000.0,
        }
        if phase == "prune":
            done = min(1.0, step / (0.2 * total_steps))
            target = {name: done * value for name, value in GRANULARITIES.items()}
            record["target_sparsity"] = target
            record["sparsity"] = {
                name: value * (1 - math.exp(-step / 25)) + 0.002 for name, value in target.items()
            }
            record["lagrangian"] = 0.01
        return record

    def evaluation_point(
        self,
        phase: str,
        step: int,
        total_steps: int,
        ratio: dict[str, float],
        reference: dict[str, float],
    ) -> dict[str, Any]:
        loss = {
            name: 2.6
            + 0.25 * index
            + 1.4 * math.exp(-step / (150 + 60 * index))
            + self.random.gauss(0, 0.01)
            for index, name in enumerate(self.domains)
        }
        known = step >= 0.2 * total_steps
        reference_loss = {
            name: (2.55 + 0.24 * index if known else None)
            for index, name in enumerate(self.domains)
        }
        excess = {
            name: (loss[name] - floor if (floor := reference_loss[name]) is not None else None)
            for name in self.domains
        }
        new = dict(self.share)
        if known and self.policy != "constant":
            lift = {n: s * math.exp(2.5 * (excess[n] or 0.0)) for n, s in reference.items()}
            new = {n: value / sum(lift.values()) for n, value in lift.items()}
            if step >= 0.4 * total_steps:
                reference = {n: 0.1 * new[n] + 0.9 * reference[n] for n in new}
        return {
            "kind": "eval",
            "phase": phase,
            "step": step,
            "time": 1000.0 + step,
            "loss": loss,
            "reference_loss": reference_loss,
            "forecast": {
                name: (None if value is None else value + self.random.gauss(0.01, 0.01))
                for name, value in reference_loss.items()
            },
            "reference_ratio": reference,
            "ratio": new,
            "excess": excess,
            "realised_share": {
                name: value + 0.001 * (-1) ** index
                for index, (name, value) in enumerate(ratio.items())
            }
            if step
            else None,
            "epochs": dict.fromkeys(self.domains, step / 500),
            "parameters": 8_507_648 if phase == "prune" else 3_197_920,
            "evaluation_seconds": 2.0,
            "update_seconds": 0.02,
            "explanation": self.explanation(new, reference, known=known)
            | {"churn": sum(abs(share - ratio[name]) for name, share in new.items())},
        }

    def explanation(
        self, ratio: dict[str, float], reference: dict[str, float], *, known: bool
    ) -> dict[str, Any]:
        """What a policy with a ball says; the constant one only that it decided."""
        if self.policy == "constant":
            return {"ratio_updated": True, "unusable": {}}
        distance = sum((ratio[n] - reference[n]) ** 2 / reference[n] for n in ratio) / 2
        return {
            "ratio_updated": known,
            "unusable": {} if known else dict.fromkeys(self.domains, "no reference loss yet"),
            "reference_origin": dict.fromkeys(self.domains, "forecast") if known else {},
            "forecast_law": {
                name: {"A": 4.0, "beta": 0.2, "E": 2.4 + 0.2 * i, "offset": 40.0, "transfer": 0.1}
                for i, name in enumerate(self.domains)
                if known
            },
            "forecast_share": dict.fromkeys(self.domains, 1 / len(self.domains)) if known else {},
            "rho": 0.1,
            "radius": 0.08,
            "divergence": distance,
            "floor": dict.fromkeys(self.domains, 0.01),
            "at_floor": dict.fromkeys(self.domains, False),
        }

    def evaluations(self, *names: str) -> None:
        levels = {"source": 2.9, "pruned": 3.9, "model": 3.2}
        folder = self.folder / "evaluation"
        folder.mkdir(exist_ok=True)
        for name in names or tuple(levels):
            nudge = 0.05 * len(self.policy) if name == "model" else 0.0
            loss = {
                domain: levels[name] + 0.2 * index - (nudge if index else -nudge)
                for index, domain in enumerate(self.domains)
            }
            content = {
                "name": name,
                "label": {"source": "source", "pruned": "as cut", "model": "recovered"}[name],
                "path": name,
                "parameters": PARAMETERS[name],
                "loss": loss,
                "perplexity": {domain: math.exp(value) for domain, value in loss.items()},
                "average_perplexity": math.exp(sum(loss.values()) / len(loss)),
                "worst_domain": max(loss, key=lambda domain: loss[domain]),
                "blocks": dict.fromkeys(self.domains, 48),
                "sequence_length": 256,
            }
            (folder / f"{name}.json").write_text(json.dumps(content))

    def intervals(self) -> None:
        """Complete the evaluations: intervals of 2% and bits per byte."""
        for file in (self.folder / "evaluation").glob("*.json"):
            content = json.loads(file.read_text())
            loss = content["loss"]
            mean = sum(loss.values()) / len(loss)
            content |= {
                "interval": {name: [value - 0.01, value + 0.01] for name, value in loss.items()},
                "average_interval": [mean - 0.005, mean + 0.005],
                "bits_per_byte": {name: value / 4 for name, value in loss.items()},
            }
            file.write_text(json.dumps(content))

    def score(self, model: str, task: str, value: float, **changes: Any) -> None:
        """Write the score of a model on a task."""
        key = TaskKey(
            fingerprint=changes.get("fingerprint", f"{self.folder.name}-{model}"),
            task=task,
            shots=None,
            settings="0",
            limit=changes.get("limit"),
            bos=None,
            precision="fp32",
            lm_eval="0.4.13",
        )
        result = TaskScore(
            shots=changes.get("shots", 0),
            metric="acc",
            higher_is_better=changes.get("higher_is_better", True),
            score=value,
            documents=100,
            standard_error=changes.get("error", 0.02),
            document_scores=[0.0, 1.0],
        )
        prompt = changes.get("prompt")
        write_task_result(
            RunFolder(self.folder).task_results,
            TaskResult(model=model, path=model, prompt=prompt, key=key, result=result),
        )

    def plan(self) -> None:
        source = {"num_layers": 8, "hidden_size": 256, "intermediate_size": 704, "num_heads": 8}
        target = {"num_layers": 6, "hidden_size": 160, "intermediate_size": 440, "num_heads": 5}
        heads = [[0, 1, 2, 5, (7 if layer else 6)] for layer in range(6)]
        content = {
            "version": 1,
            "source": {
                "model_type": "llama",
                **source,
                "num_kv_heads": 8,
                "head_dim": 32,
                "vocab_size": 4096,
                "tied_embeddings": False,
            },
            "target": {
                "model_type": "llama",
                **target,
                "num_kv_heads": 5,
                "head_dim": 32,
                "vocab_size": 4096,
                "tied_embeddings": False,
            },
            "layers": [0, 1, 2, 4, 5, 7],
            "hidden": format((1 << 160) - 1, "x"),
            "kv_groups": heads,
            "heads": heads,
            "intermediate": [format(((1 << 440) - 1) << layer, "x") for layer in range(6)],
        }
        (self.folder / "prune").mkdir(exist_ok=True)
        (self.folder / "prune" / "plan.json").write_text(json.dumps(content))

    def similarity(self) -> None:
        rows = [
            {
                "step": step,
                "similarity": {
                    name: 1 - 0.4 * math.exp(-step / (40 + 20 * index)) if step < 400 else 1.0
                    for index, name in enumerate(GRANULARITIES)
                },
            }
            for step in range(0, 401, 25)
        ]
        (self.folder / "prune").mkdir(exist_ok=True)
        content = {"granularities": list(GRANULARITIES), "rows": rows}
        (self.folder / "prune" / "similarity.json").write_text(json.dumps(content))
