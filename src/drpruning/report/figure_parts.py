"""What the figures of a page share: the record of one, its key, how lines are drawn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drpruning.report.drawing import (
    LARGE,
    MUTED,
    SMALL,
    Size,
    label_lines,
    label_space,
    panel,
    percent,
    points,
    series_style,
    swatch,
    to_svg,
)
from drpruning.report.formats import LARGEST
from drpruning.report.scales import Kind, pixels, two_units
from drpruning.report.timeline import Points, Timeline, present, series
from drpruning.runs.lines import EvalPoint
from drpruning.scheduling import Explanation

Numbers = Mapping[str, float]
Style = Mapping[str, Any]

MOST_COLOURED = 8
"""Lines of one panel that are drawn in the colour of their domain, with their names beside them."""
REFERENCE: dict[str, Any] = {"color": MUTED, "linestyle": (0, (5, 2)), "linewidth": 1.3}
"""How a line is drawn that another one should follow."""
SAMPLE, _CHARACTER, _KEY_GAP = 34.0, 6.9, 18.0
"""Pixels of the sample of a line with the gap after it, of a character, and between two entries."""
UNITS = {
    "perplexity": "perplexity, log scale",
    "times": "perplexity over the source's, log scale",
    "nats": "nats per token",
    "percent": "share",
    "number": "",
}


def finite(values: Numbers) -> list[float]:
    """The values that are known."""
    return [value for value in values.values() if math.isfinite(value)]


@dataclass(frozen=True, kw_only=True)
class Key:
    """An entry of a figure's key: a sample of the line, and what it stands for."""

    svg: str
    label: str
    style: Style


@dataclass(kw_only=True)
class Figure:
    """One figure of the page: a panel, or several beside each other.

    Attributes:
        ident: Its ``id``; panel number i has the ``id`` `IDENT-i`.
        title: What it shows.
        caption: How to read it; the description of its panels too.
        unit: Of the vertical scales.
        kind: What these show: `perplexity` and `times` have two units.
        size: Of its panels.
        key: What line stands for what.
        panels: The ``<svg>`` elements.
        axes: What these were drawn from, for other formats.
    """

    ident: str
    title: str
    caption: str
    kind: Kind
    unit: str = ""
    size: Size = SMALL
    key: list[Key] = field(default_factory=list)
    panels: list[str] = field(default_factory=list)
    axes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.unit = self.unit or UNITS[self.kind]

    @property
    def is_large(self) -> bool:
        """Whether its panels have the large size."""
        return self.size.width == LARGE.width

    def explain(self, *entries: tuple[str, Style]) -> None:
        """Add entries to the key: a label and the style of its line."""
        self.key += [Key(svg=swatch(style), label=label, style=style) for label, style in entries]

    def key_lines(self, width: float) -> list[list[tuple[float, str, Key | None]]]:
        """Set unit and key from left to right, in lines of this width in pixels.

        Returns:
            Where each text begins, the text, and the entry whose sample stands before it; the unit
            has none.
        """
        entries = [(self.unit, None)] if self.unit else []
        lines: list[list[tuple[float, str, Key | None]]] = []
        end = math.inf
        for text, entry in [*entries, *((entry.label, entry) for entry in self.key)]:
            length = (SAMPLE if entry else 0.0) + _CHARACTER * len(text)
            if end + length > width:
                lines.append([])
                end = 0.0
            lines[-1].append((end + (SAMPLE if entry else 0.0), text, entry))
            end += length + _KEY_GAP
        return lines

    def add(self, axis: Any, timeline: Timeline | None, title: str = "") -> None:
        """Render axes as the next panel.

        Args:
            axis: With all that is to be seen.
            timeline: What its horizontal axis shows; None where that is not steps.
            title: The panel's name; default: the figure's.
        """
        data: dict[str, Any] = {}
        if timeline is not None:
            timeline.configure(axis, name_phases=self.is_large)
            if self.kind in {"perplexity", "times"}:
                two_units(axis, "times" if self.kind == "times" else "perplexity")
            data = {"x": timeline.pixels(axis), "y": pixels(axis, self.kind)}
        self.axes.append(axis)
        self.panels.append(
            to_svg(
                axis,
                ident=f"{self.ident}-{len(self.panels)}",
                title=title or self.title,
                description=self.caption,
                data=data,
            )
        )


def radius(explanation: Explanation) -> float:
    """How far the ratio could be from the reference ratio at an update.

    That was rho before policies asked for evidence, so logs from then do not name it.
    """
    return explanation.rho if math.isnan(explanation.radius) else explanation.radius


def radius_is_smaller(explanation: Explanation) -> bool:
    """Whether the scores gave too little evidence for the largest distance allowed."""
    return radius(explanation) < explanation.rho * (1 - 1e-9)


def divergences(point: EvalPoint) -> Numbers:
    """The divergence from the teacher of each domain; empty without distillation."""
    return point.divergence or {}


def own_colour(domains: Sequence[str], name: str) -> dict[str, Any]:
    """For a panel of its own: the domain's colour, solid (dashes there mean the reference)."""
    return {"color": series_style(domains.index(name))["color"]}


def coloured(lines: Mapping[str, Sequence[float]]) -> list[str]:
    """The lines to be drawn in colour where there are too many: those that move most."""
    moved = {name: max(values) - min(values) for name, values in lines.items()}
    most = sorted(moved, key=lambda name: moved[name], reverse=True)[:MOST_COLOURED]
    return [name for name in lines if name in most]


def draw_labelled(
    figure: Figure,
    timeline: Timeline,
    domains: Sequence[str],
    lines: Mapping[str, tuple[list[float], list[float]]],
    prepare: Callable[[Any], None],
    **style: Any,
) -> None:
    """Draw a panel of one line per domain with its name at the right end.

    Where there are more than `MOST_COLOURED`, the others are grey and have no name beside them.

    Args:
        figure: To which the panel is added.
        timeline: Its horizontal axis.
        domains: All domains of the page; the position of one decides its colour.
        lines: Domain -> places on the axis and values.
        prepare: Called with the axes before lines are drawn.
        style: For all lines.
    """
    named = coloured({name: values for name, (_, values) in lines.items()})
    axis = panel(figure.size, right=label_space(named))
    prepare(axis)
    ends = []
    for name, (places, values) in lines.items():
        look = series_style(domains.index(name))
        if name not in named:
            look = {"color": MUTED, "linewidth": 0.7, "alpha": 0.55}
        look = {**style, **points(values), **look}
        axis.plot(places, values, gid=f"line-{name}", label=name, **look)
        if name in named:
            ends.append((places[-1], values[-1], name, look["color"]))
    timeline.configure(axis)
    label_lines(axis, ends)
    if len(named) < len(lines):
        figure.explain((f"the other {len(lines) - len(named)} domains", {"color": MUTED}))
    figure.add(axis, timeline)


def shares_figure(
    timeline: Timeline,
    domains: Sequence[str],
    pick: Callable[[EvalPoint], Numbers],
    *,
    ident: str,
    title: str,
    caption: str,
) -> Figure | None:
    """Draw shares over steps; None where there are none."""
    evals = timeline.evals
    shown = present(evals, domains, pick)
    if not shown:
        return None
    positive = [v for _, point in evals for v in pick(point).values() if 0 < v <= LARGEST]
    is_log = bool(positive) and max(positive) > 8 * min(positive)

    def prepare(axis: Any) -> None:
        if is_log:
            axis.set_yscale("log")
        percent(axis)

    unit = "share, log scale" if is_log else "share"
    figure = Figure(
        ident=ident, title=title, caption=caption, kind="percent", unit=unit, size=LARGE
    )
    lines = {name: series(evals, pick, name) for name in shown}
    draw_labelled(figure, timeline, domains, lines, prepare, drawstyle="steps-post")
    return figure


def average(evals: Points, names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Places and mean losses of the evaluations at which every one of these losses is known."""
    rows = [(x, [point.loss.get(name, math.nan) for name in names]) for x, point in evals]
    known = [(x, row) for x, row in rows if all(abs(loss) <= LARGEST for loss in row)]
    return [x for x, _ in known], [sum(v / len(row) for v in row) for _, row in known]
