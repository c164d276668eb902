"""What of the training loop is in a checkpoint beside its tensors, and how it is put back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpruning.errors import BadInput
from drpruning.training.checkpoint import read_state
from drpruning.training.identity import check_identity, find_place

if TYPE_CHECKING:
    from drpruning.training.loop import Loop


def loop_state(loop: "Loop") -> dict[str, Any]:
    """Everything small that a loop goes on from, JSON-able; its numbers are settled before."""
    return {
        "identity": loop.identity,
        "evaluated": loop.evaluated,
        "ratio": loop.ratio,
        "policy": loop.policy.state_dict(),
        "mixture": loop.mixture.state_dict(),
        "segment_steps": loop.segment.steps if loop.segment else None,
        "stopped": loop.stopped,
        "numbers": loop.numbers.state_dict(),
        "seconds": loop.seconds,
        "metrics_bytes": loop.metrics.size(),
        **loop.extra_state(),
    }


def restore(loop: "Loop", path: Path) -> None:
    """Put a loop where a checkpoint was saved, tensors and log included.

    Raises:
        BadInput: The checkpoint is of another run, or of a later step than there will be.
    """
    state = read_state(path)
    accept = loop.training.checkpoint.accept_changes
    check_identity(path, state["identity"], loop.identity, accept=accept, reporter=loop.reporter)
    if state["step"] > loop.settings.steps:
        raise BadInput(
            f"{loop.phase}.steps: {loop.settings.steps}, but {path} has done {state['step']}; "
            "write more, or remove it to go on from an earlier one"
        )
    loop.distributed.read_tensors(path, loop.optimizer)
    loop.step = loop.saved = state["step"]
    loop.evaluated, loop.stopped = state["evaluated"], state["stopped"]
    loop.ratio, loop.seconds = state["ratio"], state["seconds"]
    loop.numbers.load_state_dict(state["numbers"])
    try:
        loop.policy.load_state_dict(state["policy"])
        find_place(loop.mixture, state["mixture"], accept=accept)
        left = loop.settings.steps - loop.evaluated
        if left and loop.stopped is None:
            steps = min(state["segment_steps"] or loop.settings.evaluate_every, left)
            loop.segment = loop.mixture.plan_segment(loop.ratio, steps)
    except ValueError as error:
        raise BadInput(f"{path} does not fit: {error}") from None
    loop.load_extra_state(state)
    if loop.accelerator.is_main_process and not loop.metrics.cut(state["metrics_bytes"]):
        loop.reporter.warn(f"{loop.metrics.path} has lost lines from before step {loop.step}")
