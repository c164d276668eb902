"""Numbers as the page writes them."""

import math
from collections.abc import Sequence

UNKNOWN = "–"
PHASE_TITLES = {"prune": "Pruning", "pretrain": "Continued pretraining"}


def percentage(value: float, unknown: str = UNKNOWN) -> str:
    """A share in percent."""
    return unknown if math.isnan(value) else f"{100 * value:.2f}%"


def loss_text(value: float) -> str:
    """A loss in nats with three decimals."""
    return UNKNOWN if math.isnan(value) else f"{value:.3f}"


def factor(value: float) -> str:
    """A factor with two decimals."""
    return UNKNOWN if math.isnan(value) else f"×{value:.2f}"


def duration(seconds: float) -> str:
    """A time in a unit that fits its size."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def consecutive(indices: Sequence[int]) -> list[list[int]]:
    """Cut ascending indices where one is left out."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def ranges(indices: Sequence[int]) -> str:
    """Write ascending indices with runs joined: ``0–2, 5``."""
    runs = consecutive(indices)
    return ", ".join(str(run[0]) + (f"–{run[-1]}" if len(run) > 1 else "") for run in runs)
