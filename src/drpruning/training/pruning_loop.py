"""The pruning phase: masks, multipliers and weights are trained together."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from drpruning.data import Mixture
from drpruning.errors import BadInput
from drpruning.pruning import MaskedModel, PruningPlan, initialise_masks, taylor_importance
from drpruning.recipe import Prune, Stop
from drpruning.scheduling import Policy
from drpruning.training.loop import Loop, Setting
from drpruning.training.metrics import JsonLines
from drpruning.training.optimization import step_seed
from drpruning.training.ranks import on_any_rank
from drpruning.training.stopping import deviation_text, is_settled, stop_reason
from drpruning.training.tensors import storage_errors
from drpruning.training.validation import autocast
from drpruning.whole_file import put_in_place, write_whole


class PruningLoop(Loop):
    """The loop with masks: noise by part, the Lagrangian, the sparsity schedule, plans."""

    phase = "prune"

    def __init__(self, setting: Setting, masked: MaskedModel, policy: Policy, mixture: Mixture):
        """As `Loop`; `masked` is the source model with masks attached."""
        assert isinstance(setting.settings, Prune)  # noqa: S101 - for the type checker
        self.masked = masked
        self.masking = setting.settings
        self.parts = self.masking.mask_samples
        self.plans = JsonLines(setting.folder / "prune" / "plans.jsonl")
        super().__init__(setting, masked, policy, mixture)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Three groups: weights, masks, multipliers (these ascend)."""
        return self.masked.parameter_groups(
            learning_rate=self.masking.learning_rate,
            mask_learning_rate=self.masking.mask_learning_rate,
            multiplier_learning_rate=self.masking.multiplier_learning_rate,
            weight_decay=self.masking.weight_decay,
        )

    def start_afresh(self) -> None:
        """Order the masks by the importance of their parts, if the recipe says so."""
        if self.masking.initial_masks == "noise":
            return
        batches = self.masking.calibration_batches
        self.reporter.line(f"{self.phase}: importance of every part, over {batches} batches")
        torch.manual_seed(step_seed(self.training.seed, 0, self.accelerator.process_index))
        self.masked.train()
        # Compiled for these shapes too, the steps would be compiled for varying ones.
        eager = torch.compiler.set_stance("force_eager")
        unshared = self.distributed.gradients_shared(last=False)
        with eager, unshared, autocast(self.device, self.distributed.precision):
            scores = taylor_importance(self.masked, self._calibration_sequences(batches))
        scores = {name: self.accelerator.reduce(score) for name, score in scores.items()}
        initialise_masks(self.masked, scores)

    def _calibration_sequences(self, batches: int) -> Iterator[dict[str, Any]]:
        """This rank's rows of the first batches in the initial ratio, one at a time."""
        segment = self.mixture.plan_segment(self.ratio, batches)
        with self.reporter.task("importance", batches) as task:
            for index in range(batches):
                task.update(index)
                for block_T in self.own_blocks(segment, index):
                    yield {"input_ids": block_T[None], "labels": block_T[None], "use_cache": False}

    def prepare_step(self) -> None:
        """Key the noise and set the scheduled sparsity (linear over the warm-up)."""
        warmup = self.masking.sparsity_warmup_steps
        self.masked.set_step(self.step, min(1.0, self.step / warmup) if warmup else 1.0)

    def prepare_pass(self, part: int) -> None:
        """Key the noise to the part."""
        self.masked.set_part(part)

    def finish_gradients(self) -> dict[str, Tensor]:
        """The Lagrangian's gradients, then the mean of the masks' gradients over ranks."""
        lagrangian = self.masked.lagrangian()
        lagrangian.backward()  # type: ignore[no-untyped-call]
        if self.accelerator.num_processes > 1:
            for parameter in self.masked.masks.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        return {"lagrangian": lagrangian.detach()}

    def step_fields(self) -> dict[str, Any]:
        """Sparsities against their targets, and the expected number of parameters."""
        return {
            "sparsity": self.masked.sparsity(),
            "target_sparsity": self.masked.target_sparsity(),
            "sparsity_deviation": self.masked.sparsity_deviation(),
            "expected_parameters": self.parameter_count(),
        }

    @torch.no_grad()
    def parameter_count(self) -> float:
        """Expected parameters under the masks."""
        return float(self.masked.expected_parameters())

    def final_parameter_count(self) -> float:
        """Parameters of the target."""
        return float(self.masked.target.num_parameters())

    def after_evaluation(self) -> None:
        """Keep the plan that would be cut now; stop where plans have long been the same."""
        if self.accelerator.is_main_process:
            self.plans.path.parent.mkdir(exist_ok=True)
            if self.step == 0:
                self.plans.cut(0)
            plan = json.loads(self.masked.plan().to_json())
            self.plans.write({"step": self.step, "plan": plan})
        stop = self.masking.stop
        going_on = self.step < self.masking.steps
        if stop and going_on and on_any_rank(self.accelerator, self._is_settled(stop)):
            self.stopped = stop_reason(stop)
        self._report_deviation()

    def _report_deviation(self) -> None:
        """Once the sparsity warm-up is over, and at the end: which sparsities are off target."""
        begin, every = self.masking.sparsity_warmup_steps, self.masking.evaluate_every
        last = self.step == self.masking.steps or self.stopped is not None
        if last or self.step - every < begin <= self.step:
            masked = self.masked
            reached = masked.sparsity(), masked.target_sparsity(), masked.sparsity_deviation()
            for line in deviation_text(*reached, last=last):
                self.warn(line)

    def _is_settled(self, stop: Stop) -> bool:
        """The main process, which has plans.jsonl, decides for all."""
        if not self.accelerator.is_main_process:
            return False
        begin = self.masking.sparsity_warmup_steps
        plans = [plan for step, plan in self._plans(stop.evaluations + 1) if step >= begin]
        return is_settled(plans, self.masked.sparsity_deviation(), stop)

    def _plans(self, latest: int | None = None) -> list[tuple[int, PruningPlan]]:
        """Step and plan of every evaluation so far, or of the latest ones; not of damaged lines."""
        found = []
        for record in self.plans.read()[-latest if latest else None :]:
            with suppress(BadInput, KeyError):
                found.append((record["step"], PruningPlan.from_json(json.dumps(record["plan"]))))
        return found

    def extra_state(self) -> dict[str, Any]:
        """How much of plans.jsonl belongs to the checkpoint."""
        return {"plans_bytes": self.plans.size()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Cut plans.jsonl back, and know which sparsity was scheduled."""
        self.prepare_step()
        if self.accelerator.is_main_process and not self.plans.cut(state["plans_bytes"]):
            self.reporter.warn(f"{self.plans.path} has lost plans from before step {self.step}")

    def write_outcome(self) -> PruningPlan:
        """Write plan.json, masks.safetensors and similarity.json; returns the final plan."""
        folder: Path = self.plans.path.parent
        plan = self.masked.plan()
        plan.save(folder / "plan.json")
        masks = {n: t.detach().cpu() for n, t in self.masked.masks.state_dict().items()}
        draft = folder / ".masks.safetensors.partial"
        with storage_errors():
            save_file(masks, draft)
        put_in_place(draft, folder / "masks.safetensors")
        rows: list[dict[str, Any]] = [
            {"step": step, "similarity": earlier.similarity(plan)}
            for step, earlier in self._plans()
        ]
        names = list(plan.similarity(plan))
        write_whole(folder / "similarity.json", json.dumps({"granularities": names, "rows": rows}))
        return plan
