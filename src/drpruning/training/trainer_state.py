"""What a phase of training consists of: model, optimizer, policy, data; and its state as JSON."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from drpruning.data import Mixture, Segment
from drpruning.runs.lines import Line, Warned
from drpruning.runs.log import MetricsLog
from drpruning.scheduling import Policy
from drpruning.training.checkpoint import CheckpointManager
from drpruning.training.context import TrainerContext
from drpruning.training.distributed import DistributedModel
from drpruning.training.hooks import PhaseHooks
from drpruning.training.identity import restore_mixture
from drpruning.training.objective import DomainMeans
from drpruning.training.optimizer import build_optimizer, micro_batches
from drpruning.training.skipped_steps import StepMetrics
from drpruning.training.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


class TrainerState(PhaseHooks):
    """The parts of one phase of training, its state for a checkpoint, and its log."""

    phase = "pretrain"
    parts = 1

    def __init__(self, context: TrainerContext, model: nn.Module, policy: Policy, mixture: Mixture):
        """Set the phase up at step 0.

        Args:
            context: Recipe sections, data, run folder, devices, terminal.
            model: The model, float32 parameters; it is trained in place.
            policy: Gives the ratio; asked at every evaluation.
            mixture: Gives the blocks, from where this phase starts.
        """
        self.settings, self.training = context.settings, context.training
        self.data, self.folder = context.data, context.folder
        self.accelerator, self.reporter = context.accelerator, context.reporter
        self.identity = context.identity
        self.untrained_reference_loss = context.untrained_reference_loss
        self.teacher_loss = context.teacher_loss
        self.policy, self.mixture = policy, mixture
        self.device = self.accelerator.device
        self.micro_batches = micro_batches(
            self.settings.global_batch,
            self.training.micro_batch,
            self.parts,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.vocabulary_size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        self.distributed = DistributedModel(model, self.training, self.accelerator)
        self.model, self.parameters = self.distributed.module, self.distributed.parameters
        self.optimizer = build_optimizer(self.parameter_groups(), self.settings)
        self.metrics = MetricsLog(self.folder.metrics, self.phase)
        self.checkpoints = CheckpointManager(
            self.folder.checkpoints, self.phase, self.training.checkpoint, self.accelerator
        )
        self.step = self.saved = 0
        self.evaluated, self.save_due = -1, False
        self.ratio = dict(policy.ratio)
        self.segment: Segment | None = None
        self.stopped: str | None = None
        self.numbers, self.watch = StepMetrics(), Stopwatch(self.device)
        self.objective, self.divergence = context.objective, DomainMeans()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        decay = self.settings.weight_decay
        return [{"params": list(self.parameters.values()), "weight_decay": decay}]

    def parameter_count(self) -> float:
        """Parameters of the model as it is now."""
        return float(sum(p.numel() for p in self.parameters.values()))

    def final_parameter_count(self) -> float:
        """Parameters of the model at the end of the phase."""
        return self.parameter_count()

    # State and log.

    def state_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values; step metrics must be synchronized before."""
        return {
            "identity": self.identity,
            "evaluated": self.evaluated,
            "ratio": self.ratio,
            "policy": self.policy.state_dict(),
            "mixture": self.mixture.state_dict(),
            "segment_steps": self.segment.steps if self.segment else None,
            "stopped": self.stopped,
            "numbers": self.numbers.state_dict(),
            "seconds": self.watch.state_dict(),
            "metrics_bytes": self.metrics.size(),
            **self.divergence.state_dict(),
            **self.extra_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, and plan the current segment again.

        Args:
            state: With the steps done as `step`.

        Raises:
            ValueError: The state of the policy or of the mixture does not match this trainer's.
        """
        self.step = self.saved = state["step"]
        self.evaluated, self.stopped = state["evaluated"], state["stopped"]
        self.ratio = state["ratio"]
        self.watch.load_state_dict(state["seconds"])
        self.numbers.load_state_dict(state["numbers"])
        self.divergence.load_state_dict(state, self.device)
        self.policy.load_state_dict(state["policy"])
        accept = self.training.checkpoint.accept_changes
        restore_mixture(self.mixture, state["mixture"], accept=accept)
        left = self.settings.steps - self.evaluated
        if left and self.stopped is None:
            steps = min(state["segment_steps"] or self.settings.evaluate_every, left)
            self.segment = self.mixture.plan_segment(self.ratio, steps)
        self.load_extra_state(state)

    def record(self, kind: type[Line], step: int | None = None, **fields: Any) -> None:
        """Append a line to metrics.jsonl; call it on the main process alone."""
        step = self.step if step is None else step
        self.metrics.record(kind(phase=self.phase, step=step, time=time.time(), **fields))

    def warn(self, message: str, *, record: bool = True) -> None:
        """Warn of something at this step, once for all ranks; also in metrics.jsonl if asked."""
        if self.accelerator.is_main_process:
            logger.warning("%s %d: %s", self.phase, self.step, message)
        if record and self.accelerator.is_main_process:
            self.record(Warned, message=message)
