"""Curves over the evaluations of a phase, and what every figure of them is made of."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from drpruning.report.captions import Numbers
from drpruning.report.drawing import (
    MUTED,
    label_lines,
    panels,
    percent,
    points,
    series_style,
    to_svg,
)
from drpruning.report.records import EvalPoint


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the page.

    Attributes:
        ident: The ``id`` of its ``<svg>``.
        title: What it shows.
        caption: One or two sentences that say what to read from it; the SVG's description too.
        svg: The element itself.
    """

    ident: str
    title: str
    caption: str
    svg: str


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
    """The domains for which at least one evaluation knows the value."""
    return [
        name
        for name in domains
        if any(math.isfinite(pick(point).get(name, math.nan)) for point in evals)
    ]


def series(
    evals: Sequence[EvalPoint], pick: Callable[[EvalPoint], Numbers], name: str
) -> tuple[list[int], list[float]]:
    """Steps and values at which the value is known."""
    known = [(point.step, pick(point).get(name, math.nan)) for point in evals]
    known = [(step, value) for step, value in known if math.isfinite(value)]
    return [step for step, _ in known], [value for _, value in known]


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
    """One line a domain with its name at the right end."""
    ends = []
    for name in shown:
        steps, values = series(evals, pick, name)
        look = series_style(domains.index(name))
        axis.plot(steps, values, gid=f"line-{name}", **look, **points(values), **style)
        ends.append((steps[-1], values[-1], name, look["color"]))
    label_lines(axis, ends)


def draw_shares(
    evals: Sequence[EvalPoint], domains: Sequence[str], pick: Callable[[EvalPoint], Numbers]
) -> Any:
    """A drawing of shares over steps; None where there are none."""
    shown = present(evals, domains, pick)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    positive = [v for point in evals for v in pick(point).values() if v > 0]
    if positive and max(positive) > 8 * min(positive):
        axis.set_yscale("log")
    percent(axis)
    draw_labelled(axis, evals, domains, shown, pick, drawstyle="steps-post")
    axis.set_ylabel("share, log scale" if axis.get_yscale() == "log" else "share")
    return figure
