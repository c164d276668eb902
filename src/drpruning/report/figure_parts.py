"""What the figures of a page share: the record of one, series of values, how lines are drawn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drpruning.report.drawing import (
    MUTED,
    label_lines,
    panels,
    percent,
    points,
    series_style,
    to_svg,
)
from drpruning.runs.lines import EvalPoint
from drpruning.scheduling import Explanation

Numbers = Mapping[str, float]


LARGEST = 1e30
"""Numbers beyond it are not drawn: scales and their margins would overflow."""


def is_drawable(value: float) -> bool:
    """Whether a value is known and a scale can hold it."""
    return abs(value) <= LARGEST  # false for NaN too


def drawable(value: float) -> float:
    """The value; NaN, which leaves a gap, where it cannot be drawn."""
    return value if is_drawable(value) else math.nan


def finite(values: Numbers) -> list[float]:
    """The values that are known."""
    return [value for value in values.values() if math.isfinite(value)]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the page.

    Attributes:
        ident: The ``id`` of its ``<svg>``.
        title: What it shows.
        caption: How to read it; the SVG's description too.
        svg: The element itself.
    """

    ident: str
    title: str
    caption: str
    svg: str


def radius(explanation: Explanation) -> float:
    """How far the ratio could be from the reference ratio at an update.

    That was rho before policies asked for evidence, so logs from then do not name it.
    """
    return explanation.rho if math.isnan(explanation.radius) else explanation.radius


def radius_is_smaller(explanation: Explanation) -> bool:
    """Whether the scores gave too little evidence for the largest distance allowed."""
    return radius(explanation) < explanation.rho * (1 - 1e-9)


REFERENCE: dict[str, Any] = {"color": MUTED, "linestyle": (0, (5, 2)), "linewidth": 1.0}
"""How a line is drawn that another one should follow."""


def finish(figure: Any, ident: str, title: str, caption: str) -> Figure:
    """Render a drawing as a figure of the page; its caption describes the SVG too."""
    caption = caption.strip()
    svg = to_svg(figure, ident=ident, title=title, description=caption)
    return Figure(ident=ident, title=title, caption=caption, svg=svg)


def present(
    evals: Sequence[EvalPoint], domains: Sequence[str], pick: Callable[[EvalPoint], Numbers]
) -> list[str]:
    """The domains that have a value to draw at one evaluation or more."""
    return [
        name
        for name in domains
        if any(is_drawable(pick(point).get(name, math.nan)) for point in evals)
    ]


def series(
    evals: Sequence[EvalPoint], pick: Callable[[EvalPoint], Numbers], name: str
) -> tuple[list[int], list[float]]:
    """Steps and values at which the value can be drawn."""
    known = [(point.step, pick(point).get(name, math.nan)) for point in evals]
    known = [(step, value) for step, value in known if is_drawable(value)]
    return [step for step, _ in known], [value for _, value in known]


def divergences(point: EvalPoint) -> Numbers:
    """The divergence from the teacher of each domain; empty without distillation."""
    return point.divergence or {}


def own_colour(domains: Sequence[str], name: str) -> dict[str, Any]:
    """For a panel of its own: the domain's colour, solid (dashes there mean the reference)."""
    return {"color": series_style(domains.index(name))["color"]}


def height_for(lines: int) -> float:
    """Inches that a panel needs for the names of so many lines at their ends."""
    return max(2.5, 0.9 + 0.155 * lines)


def draw_labelled(
    axis: Any,
    evals: Sequence[EvalPoint],
    domains: Sequence[str],
    shown: Sequence[str],
    pick: Callable[[EvalPoint], Numbers],
    **style: Any,
) -> None:
    """Draw one line per domain with its name at the right end."""
    ends = []
    for name in shown:
        steps, values = series(evals, pick, name)
        look = series_style(domains.index(name))
        axis.plot(steps, values, gid=f"line-{name}", **look, **points(values), **style)
        ends.append((steps[-1], values[-1], name, look["color"]))
    label_lines(axis, ends)


def shares_figure(
    evals: Sequence[EvalPoint],
    domains: Sequence[str],
    pick: Callable[[EvalPoint], Numbers],
    *,
    ident: str,
    title: str,
    caption: str,
) -> Figure | None:
    """Draw shares over steps; None where there are none."""
    shown = present(evals, domains, pick)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    positive = [v for point in evals for v in pick(point).values() if 0 < v <= LARGEST]
    if positive and max(positive) > 8 * min(positive):
        axis.set_yscale("log")
    percent(axis)
    draw_labelled(axis, evals, domains, shown, pick, drawstyle="steps-post")
    axis.set_ylabel("share, log scale" if axis.get_yscale() == "log" else "share")
    return finish(figure, ident, title, caption)
