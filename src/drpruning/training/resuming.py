"""The state of a trainer in a checkpoint, and how a trainer resumes from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from drpruning.common.errors import BadInput
from drpruning.data import Mixture, Segment
from drpruning.recipe import Phase, Training
from drpruning.runs.log import MetricsLog
from drpruning.scheduling import Policy
from drpruning.training.checkpoint import read_state
from drpruning.training.identity import check_identity, restore_mixture
from drpruning.training.skipped_steps import StepMetrics
from drpruning.training.stopwatch import Stopwatch
from drpruning.training.tensors import read_tensors


class Resumable(Protocol):
    """What of a `Trainer` is saved and restored."""

    phase: str
    step: int
    saved: int
    evaluated: int
    stopped: str | None
    ratio: dict[str, float]
    segment: Segment | None
    identity: Mapping[str, Any]
    settings: Phase
    training: Training
    accelerator: Accelerator
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    policy: Policy
    mixture: Mixture
    numbers: StepMetrics
    watch: Stopwatch
    metrics: MetricsLog

    def extra_state(self) -> dict[str, Any]:
        """What a phase adds to a checkpoint."""

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `extra_state` gave."""

    def warn(self, message: str, *, record: bool = True) -> None:
        """Warn of something at this step."""


def trainer_state(trainer: Resumable) -> dict[str, Any]:
    """Everything but the tensors, as JSON values; step metrics must be synchronized before."""
    return {
        "identity": trainer.identity,
        "evaluated": trainer.evaluated,
        "ratio": trainer.ratio,
        "policy": trainer.policy.state_dict(),
        "mixture": trainer.mixture.state_dict(),
        "segment_steps": trainer.segment.steps if trainer.segment else None,
        "stopped": trainer.stopped,
        "numbers": trainer.numbers.state_dict(),
        "seconds": trainer.watch.state_dict(),
        "metrics_bytes": trainer.metrics.size(),
        **trainer.extra_state(),
    }


def resume(trainer: Resumable, path: Path) -> None:
    """Restore the state of a checkpoint, tensors and logs included.

    Identity and step are checked first: nothing of the trainer changes, and no log is cut back,
    unless the checkpoint is one of this run.

    Args:
        trainer: At step 0.
        path: A checkpoint of its phase, verified.

    Raises:
        BadInput: The checkpoint is of another run, or of a later step than there will be.
    """
    state = read_state(path)
    accept = trainer.training.checkpoint.accept_changes
    check_identity(path, state["identity"], trainer.identity, accept=accept)
    if state["step"] > trainer.settings.steps:
        raise BadInput(
            f"{trainer.phase}.steps: {trainer.settings.steps}, but {path} has done "
            f"{state['step']}; write more, or remove it to resume from an earlier one"
        )
    read_tensors(path, trainer.parameters, trainer.optimizer)
    try:
        _restore(trainer, state, accept=accept)
    except ValueError as error:
        raise BadInput(f"{path} is of another run: {error}") from None
    main = trainer.accelerator.is_main_process
    if main and not trainer.metrics.truncate(state["metrics_bytes"]):
        lost = f"{trainer.metrics.path} has lost lines from before step {trainer.step}"
        trainer.warn(lost, record=False)


def _restore(trainer: Resumable, state: Mapping[str, Any], *, accept: bool) -> None:
    """Restore what `trainer_state` gave, and plan the current segment again.

    Raises:
        ValueError: The state of the policy or of the mixture does not match the trainer's.
    """
    trainer.step = trainer.saved = state["step"]
    trainer.evaluated, trainer.stopped = state["evaluated"], state["stopped"]
    trainer.ratio = state["ratio"]
    trainer.watch.load_state_dict(state["seconds"])
    trainer.numbers.load_state_dict(state["numbers"])
    trainer.policy.load_state_dict(state["policy"])
    restore_mixture(trainer.mixture, state["mixture"], accept=accept)
    left = trainer.settings.steps - trainer.evaluated
    if left and trainer.stopped is None:
        steps = min(state["segment_steps"] or trainer.settings.evaluate_every, left)
        trainer.segment = trainer.mixture.plan_segment(trainer.ratio, steps)
    trainer.load_extra_state(state)
