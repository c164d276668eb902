"""Numbers as the page writes them."""

import math
from collections.abc import Sequence

UNKNOWN = "–"
PHASE_TITLES = {"prune": "Pruning", "pretrain": "Continued pretraining"}


_MANY = 1e6
"""From here on a number is written with an exponent, so that it stays short."""


def decimals(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals; a very large one with three digits and an exponent."""
    return f"{value:{sign}.{digits}f}" if abs(value) < _MANY else f"{value:{sign}.3g}"


def percentage(value: float, unknown: str = UNKNOWN) -> str:
    """A share in percent."""
    return unknown if math.isnan(value) else f"{decimals(100 * value, 2)}%"


def loss_text(value: float) -> str:
    """A loss in nats with three decimals."""
    return UNKNOWN if math.isnan(value) else decimals(value, 3)


def exp_text(value: float) -> str:
    """The perplexity of a loss."""
    return format_perplexity(math.exp(value) if value < 700 else value)


def signed(value: float) -> str:
    """A difference of losses with its sign and three decimals."""
    return UNKNOWN if math.isnan(value) else decimals(value, 3, "+").replace("-", "−")


def factor(value: float) -> str:
    """A factor with two decimals."""
    return UNKNOWN if math.isnan(value) else f"×{decimals(value, 2)}"


def duration(seconds: float) -> str:
    """A time in a unit that fits its size."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{decimals(hours, 1)} h"


def consecutive(indices: Sequence[int]) -> list[list[int]]:
    """Cut ascending indices where one is left out."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def ranges(indices: Sequence[int], separator: str = ", ", dash: str = "–") -> str:
    """Write ascending indices with runs joined: ``0–2, 5``; nothing where there are none."""
    spans = (
        f"{run[0]}{dash}{run[-1]}" if len(run) > 1 else str(run[0]) for run in consecutive(indices)
    )
    return separator.join(spans)


LARGEST = 1e30
"""Numbers beyond it are not drawn: scales and their margins would overflow."""


def is_drawable(value: float | None) -> bool:
    """Whether a value is known and a scale can hold it."""
    return value is not None and abs(value) <= LARGEST  # false for NaN too


def drawable(value: float) -> float:
    """The value; NaN, which leaves a gap, where it cannot be drawn."""
    return value if is_drawable(value) else math.nan


def number(value: float) -> str:
    """A factor in three digits, more where it is large."""
    return UNKNOWN if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def format_perplexity(value: float) -> str:
    """Two decimals, or three digits of a very large number; an en dash where not measured."""
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}" if value >= 1e6 else f"{value:,.0f}"
