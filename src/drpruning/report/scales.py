"""Vertical scales in two units at once: perplexity and nats, or factors and nats.

A loss in nats is the logarithm of the perplexity, so a line drawn in nats on a linear scale is the
same line in perplexity on a logarithmic one. Each scale is drawn once, with the ticks and grids of
both units, and the page shows those of one (`unit-ratio`) or of the other (`unit-nats`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from drpruning.report.drawing import UNIT

Kind = Literal["perplexity", "times", "percent", "nats", "number"]
RATIO, NATS = f"{UNIT}ratio", f"{UNIT}nats"
_TICKS = 5
_STEPS: Sequence[Sequence[float]] = (
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 4, 6, 8),
    (1, 2, 3, 5),
    (1, 2, 5),
    (1, 3),
    (1,),
)
"""Numbers that read easily on a logarithmic scale, within a power of ten: from many to few."""


def two_units(axes: Any, kind: Literal["perplexity", "times"], *, horizontal: bool = False) -> None:
    """Give an axis in nats the ticks of its exponential too.

    Args:
        axes: With all their lines; the limits are fixed here.
        kind: `perplexity`, or `times`: by what factor a perplexity is larger than another.
        horizontal: Whether it is the horizontal axis.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator

    def scale(which: Any) -> Any:
        return which.xaxis if horizontal else which.yaxis

    low, high = axes.get_xlim() if horizontal else axes.get_ylim()
    nats = axes.twiny() if horizontal else axes.twinx()
    for which in (axes, nats):
        (which.set_xlim if horizontal else which.set_ylim)(low, high)
    values = ticks(low, high, 0.15 if horizontal else 0.09)
    scale(axes).set_major_locator(FixedLocator([math.log(value) for value in values]))
    scale(axes).set_major_formatter(FixedFormatter([written(value, kind) for value in values]))
    scale(axes).set_gid(RATIO)
    if horizontal:
        nats.xaxis.tick_bottom()
        nats.yaxis.set_visible(False)
    else:
        nats.yaxis.tick_left()
        nats.xaxis.set_visible(False)
    nats.set_zorder(axes.get_zorder() - 1)
    nats.spines[:].set_visible(False)
    scale(nats).set_major_locator(MaxNLocator(_TICKS))
    sign = "+" if kind == "times" else ""
    scale(nats).set_major_formatter(
        FuncFormatter(lambda value, _: f"{round(value, 6) + 0.0:{sign}.3g}".replace("-", "−"))
    )
    scale(nats).set_gid(NATS)


def written(value: float, kind: Literal["perplexity", "times"]) -> str:
    """A tick in short."""
    text = f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.4g}"
    return f"{text}×" if kind == "times" else text


def ticks(low: float, high: float, gap: float = 0.09) -> list[float]:
    """Numbers that read easily, with logarithms between these limits.

    Args:
        low: The lower limit.
        high: The upper limit.
        gap: Share of the scale that is between two ticks, at least.
    """
    if high > 650 or low < -650:  # beyond what exp gives
        return []
    powers = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    found: list[float] = []
    for steps in _STEPS:
        found = [s * 10.0**p for p in powers for s in steps if low <= math.log(s * 10.0**p) <= high]
        logs = [math.log(value) for value in found]
        if all(after - before >= gap * (high - low) for before, after in pairwise(logs)):
            break
    if len(found) < 3 and high - low < math.log(3):  # nearly linear
        return _linear_ticks(math.exp(low), math.exp(high))
    return found[:: math.ceil(len(found) / 6)] if len(found) > 8 else found


def _linear_ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = map(float, MaxNLocator(_TICKS - 1).tick_values(low, high))
    return [value for value in found if low <= value <= high and value > 0]


def pixels(axis: Any, kind: Kind) -> list[Any]:
    """The pixels at both ends of the vertical axis with their values, and how to write these."""
    box, limits = axis.get_window_extent(), axis.get_ylim()
    height = float(axis.figure.bbox.height)
    if axis.get_yscale() == "log":
        limits = tuple(math.log(value) for value in limits)
        kind_text = f"log-{kind}"
    else:
        kind_text = kind
    values = [float(f"{value:.6g}") for value in limits]
    return [round(height - box.y0, 2), values[0], round(height - box.y1, 2), values[1], kind_text]
