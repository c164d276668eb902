"""What the loop tells people in a line."""

import math
from collections.abc import Mapping
from typing import Any


def _shares(ratio: Mapping[str, float]) -> str:
    return " ".join(f"{name} {100 * share:.1f}%" for name, share in ratio.items())


def step_text(fields: Mapping[str, Any], ratio: Mapping[str, float]) -> str:
    """Loss, sparsity against its target, speed and ratio of a logged step.

    Args:
        fields: Those of a record of kind `step`.
        ratio: The current one.
    """
    words = [f"loss {fields['loss']:.3f}"]
    if "sparsity" in fields:
        targets = fields["target_sparsity"]
        reached = " ".join(f"{n} {s:.2f}/{targets[n]:.2f}" for n, s in fields["sparsity"].items())
        words.append(f"sparsity {reached}")
    words.append(f"{fields['tokens_per_second']:,.0f} tokens/s")
    words.append(_shares(ratio))
    return " | ".join(words)


def evaluation_text(losses: Mapping[str, float], ratio: Mapping[str, float]) -> str:
    """Mean and worst validation loss, of those that are finite, and the ratio that follows."""
    known = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    if not known:
        return f"validation loss not known | next {_shares(ratio)}"
    worst = max(known, key=lambda name: known[name])
    mean = sum(known.values()) / len(known)
    return f"validation loss {mean:.3f}, worst {worst} {known[worst]:.3f} | next {_shares(ratio)}"


def nonfinite_loss_text(losses: Mapping[str, float]) -> list[str]:
    """What to say where a validation loss is not finite: no line or one."""
    lost = [f"{name} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    if not lost:
        return []
    return [f"the validation loss of {', of '.join(lost)}; the ratio stays as it was"]


_USED_UP = {
    "repeat": "it starts again, reshuffled",
    "redistribute": "its share goes to the others",
    "stop": "the phase ends with it",
}


def used_up_text(used_up: Mapping[str, str]) -> list[str]:
    """A line for each domain that has been used up, with what its rule makes of that."""
    return [
        f"{name} is used up: {_USED_UP[rule]} (data.domains.{name}.on_exhausted: {rule})"
        for name, rule in used_up.items()
    ]


def unsaved_text(phase: str, step: int, error: OSError, saved: int, *, last: bool) -> str:
    """What to say where a checkpoint could not be saved.

    Args:
        phase: `prune` or `pretrain`.
        step: Steps done.
        error: What kept it from being saved.
        saved: Step of the latest checkpoint, 0 without one.
        last: Whether the phase ends here, so that there is no other occasion.
    """
    text = f"{phase} {step}: no checkpoint could be saved ({error}); "
    if last:
        return f"{text}the latest one is of step {saved}: make room, then the same command resumes"
    return f"{text}the run continues and tries again at the next occasion"
