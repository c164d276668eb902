"""Training with masks, and when mask learning may end before its last step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from drpruning.common.errors import BadInput, TrainingError
from drpruning.common.files import atomic_replace, atomic_write
from drpruning.data import Mixture
from drpruning.pruning import MaskedModel, PruningPlan, initialise_masks, taylor_importance
from drpruning.recipe import Prune, Stop
from drpruning.runs.log import JsonLines
from drpruning.scheduling import Policy
from drpruning.training.context import TrainerContext
from drpruning.training.distributed import any_rank
from drpruning.training.messages import BROKEN_MODEL
from drpruning.training.optimizer import step_seed
from drpruning.training.trainer import Trainer
from drpruning.training.validation import autocast

LARGEST_DEVIATION = 0.05
"""Distance of a layer's sparsity from its target at which a cut is abrupt."""


def is_settled(plans: Sequence[PruningPlan], deviation: Mapping[str, float], stop: Stop) -> bool:
    """Whether mask learning may end at this evaluation: plans are stable and sparsity is reached.

    Args:
        plans: What would have been cut at each evaluation since the sparsity had its final target,
            in the order of time, this one last.
        deviation: Granularity -> largest distance of a layer's expected sparsity from its target.
        stop: How long and how nearly plans must agree; each with the one before, in the least
            similar granularity.
    """
    latest = plans[-stop.evaluations - 1 :]
    if len(latest) <= stop.evaluations or max(deviation.values()) > LARGEST_DEVIATION:
        return False
    return all(
        min(new.similarity(old).values()) >= stop.similarity for old, new in pairwise(latest)
    )


def stop_reason(stop: Stop) -> str:
    """The reason that the log gives for the early end."""
    return (
        f"in each of the last {stop.evaluations} evaluations the plan agreed with the one before "
        f"by at least {stop.similarity:.4g} in every granularity"
    )


def deviation_text(
    sparsity: Mapping[str, float],
    target: Mapping[str, float],
    deviation: Mapping[str, float],
    *,
    last: bool,
) -> list[str]:
    """The warnings about sparsities off their target: one for too low, one for too high.

    Args:
        sparsity: Granularity -> expected share removed, mean over layers.
        target: The share that is to be removed by now.
        deviation: Largest distance between the two in any layer.
        last: At the end of mask learning, not of the sparsity warm-up.
    """
    off = [name for name, distance in deviation.items() if not distance <= LARGEST_DEVIATION]
    high = [name for name in off if sparsity[name] > target[name]]
    low = [name for name in off if name not in high]
    end = "the cut is exact all the same, but abrupt; " if last else ""
    advice = {
        "below": (low, "more prune.steps or a higher prune.mask_learning_rate would help"),
        "above": (high, "a lower prune.mask_learning_rate or multiplier_learning_rate would help"),
    }
    lines = []
    for side, (names, remedy) in advice.items():
        found = ", ".join(
            f"{name} {sparsity[name]:.3f} of {target[name]:.3f} ({deviation[name]:.3f} off in a "
            "layer)"
            for name in names
        )
        if names:
            lines.append(f"masks are {side} their target sparsity: {found}; {end}{remedy}")
    return lines


class PruningTrainer(Trainer):
    """The loop with masks: noise by part, the Lagrangian, the sparsity schedule, plans."""

    phase = "prune"

    def __init__(
        self, context: TrainerContext, masked: MaskedModel, policy: Policy, mixture: Mixture
    ):
        """Set the phase up like `Trainer`; `masked` is the source model with masks attached."""
        assert isinstance(context.settings, Prune)  # noqa: S101 - for the type checker
        self.masked = masked
        self.masking = context.settings
        self.parts = self.masking.mask_samples
        self.plans = JsonLines(context.folder.plan_history)
        super().__init__(context, masked, policy, mixture)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Three groups: weights, masks, multipliers (these ascend)."""
        return self.masked.parameter_groups(
            learning_rate=self.masking.learning_rate,
            mask_learning_rate=self.masking.mask_learning_rate,
            multiplier_learning_rate=self.masking.multiplier_learning_rate,
            weight_decay=self.masking.weight_decay,
        )

    def start_from_scratch(self) -> None:
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
        try:
            with eager, unshared, autocast(self.device, self.distributed.precision):
                scores = taylor_importance(self.masked, self._calibration_sequences(batches))
        except FloatingPointError as error:
            raise TrainingError(f"{self.phase} 0: {error}; {BROKEN_MODEL}") from None
        scores = {name: self.accelerator.reduce(score) for name, score in scores.items()}
        initialise_masks(self.masked, scores)

    def _calibration_sequences(self, batches: int) -> Iterator[dict[str, Any]]:
        """This rank's rows of the first batches in the initial ratio, one at a time."""
        segment = self.mixture.plan_segment(self.ratio, batches)
        with self.reporter.task("importance", batches) as task:
            for index in range(batches):
                task.update(index)
                for block_T in self.own_rows(segment, index).blocks:
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
        """Record the plan that would be cut now; stop once plans no longer change."""
        if self.accelerator.is_main_process:
            self.plans.path.parent.mkdir(exist_ok=True)
            if self.step == 0:
                self.plans.truncate(0)
            plan = json.loads(self.masked.plan().to_json())
            self.plans.write({"step": self.step, "plan": plan})
        stop = self.masking.stop
        if (
            stop
            and self.step < self.masking.steps
            and any_rank(self.accelerator, self._is_settled(stop))
        ):
            self.stopped = stop_reason(stop)
        self._report_deviation()

    def _report_deviation(self) -> None:
        """Warn of sparsities off their target, after the sparsity warm-up and at the end."""
        begin, every = self.masking.sparsity_warmup_steps, self.masking.evaluate_every
        last = self.step == self.masking.steps or self.stopped is not None
        if last or self.step - every < begin <= self.step:
            masked = self.masked
            reached = masked.sparsity(), masked.target_sparsity(), masked.sparsity_deviation()
            for line in deviation_text(*reached, last=last):
                self.warn(line)

    def _is_settled(self, stop: Stop) -> bool:
        """Whether mask learning may end; true on the main process only, which has plans.jsonl."""
        if not self.accelerator.is_main_process:
            return False
        begin = self.masking.sparsity_warmup_steps
        plans = [plan for step, plan in self._plans(stop.evaluations + 1) if step >= begin]
        return is_settled(plans, self.masked.sparsity_deviation(), stop)

    def _plans(self, latest: int | None = None) -> list[tuple[int, PruningPlan]]:
        """Step and plan of all evaluations so far, or of the latest; damaged lines are left out."""
        found = []
        for record in self.plans.read()[-latest if latest else None :]:
            with suppress(BadInput, KeyError):
                found.append((record["step"], PruningPlan.from_json(json.dumps(record["plan"]))))
        return found

    def extra_state(self) -> dict[str, Any]:
        """How much of plans.jsonl belongs to the checkpoint."""
        return {"plans_bytes": self.plans.size()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Cut plans.jsonl back to the checkpoint, and set the sparsity scheduled at its step."""
        self.prepare_step()
        if self.accelerator.is_main_process and not self.plans.truncate(state["plans_bytes"]):
            self.warn(
                f"{self.plans.path} has lost plans from before step {self.step}", record=False
            )

    def write_outcome(self) -> PruningPlan:
        """Write plan.json, masks.safetensors and similarity.json; returns the final plan."""
        plan = self.masked.plan()
        plan.save(self.folder.plan)
        masks = {n: t.detach().cpu() for n, t in self.masked.masks.state_dict().items()}
        draft = self.folder.prune / ".masks.safetensors.partial"
        draft.write_bytes(save(masks))  # unlike `save_file`, with the permissions of other files
        atomic_replace(draft, self.folder.masks)
        rows: list[dict[str, Any]] = [
            {"step": step, "similarity": earlier.similarity(plan)}
            for step, earlier in self._plans()
        ]
        names = list(plan.similarity(plan))
        atomic_write(self.folder.similarity, json.dumps({"granularities": names, "rows": rows}))
        return plan
