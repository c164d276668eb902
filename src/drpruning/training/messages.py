"""What the loop tells people in a line."""

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
    """Mean and worst validation loss, and the ratio that follows."""
    worst = max(losses, key=lambda name: losses[name])
    mean = sum(losses.values()) / len(losses)
    return f"validation loss {mean:.3f}, worst {worst} {losses[worst]:.3f} | next {_shares(ratio)}"
