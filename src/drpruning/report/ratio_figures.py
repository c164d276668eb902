"""Figures of the data ratio: shares over steps, and how far and why they were moved."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from drpruning.report.drawing import INK, MUTED, SMALL, panel, percent, points
from drpruning.report.figure_parts import (
    REFERENCE,
    Figure,
    own_colour,
    radius,
    radius_is_smaller,
    shares_figure,
)
from drpruning.report.formats import drawable, is_drawable
from drpruning.report.timeline import Points, Timeline, present, series
from drpruning.runs.lines import EvalPoint


def ratio(timeline: Timeline, domains: Sequence[str], prefix: str) -> Figure | None:
    """The data ratio over steps."""
    return shares_figure(
        timeline,
        domains,
        lambda point: point.ratio,
        ident=f"{prefix}-ratio",
        title="Data ratio",
        caption="Share of each domain in the batches, set at each evaluation for the steps that "
        "follow.",
    )


def reference_ratio(timeline: Timeline, domains: Sequence[str], prefix: str) -> Figure | None:
    """The reference ratio over steps, from which the ratio may be only so far."""
    return shares_figure(
        timeline,
        domains,
        lambda point: point.reference_ratio,
        ident=f"{prefix}-reference-ratio",
        title="Reference ratio",
        caption="The ratio from which the data ratio may be only so far away; it follows the data "
        "ratio slowly, once scheduling.reference_start is reached.",
    )


def realised_share(timeline: Timeline, domains: Sequence[str], prefix: str) -> Figure | None:
    """Share of the blocks that were trained on, against the ratio that was asked for."""
    evals = timeline.evals
    shown = present(evals, domains, lambda point: point.realised_share)
    if not shown:
        return None
    figure = Figure(
        ident=f"{prefix}-realised-share",
        title="Realised share against ratio",
        caption="Dots are the shares of the segments (the training between two evaluations) as "
        "trained, the line is the ratio that was asked for; the dots should lie on it.",
        kind="percent",
    )
    asked_style: dict[str, Any] = {"color": MUTED, "linewidth": 1.2}
    figure.explain(
        ("ratio", asked_style),
        ("realised share of the segment", {"color": INK, "linestyle": "", "marker": "o"}),
    )
    pairs = [
        (before, after) for before, after in pairwise(evals) if before[1].phase == after[1].phase
    ]
    for name in shown:
        axis = panel(SMALL, title=name)
        asked = series(evals, lambda point: point.ratio, name)
        axis.step(*asked, where="post", gid=f"ratio-{name}", label="ratio", **asked_style)
        middle = [(before + after) / 2 for (before, _), (after, _) in pairs]
        got = [drawable(after.realised_share.get(name, math.nan)) for _, (_, after) in pairs]
        colour = own_colour(domains, name)["color"]
        look = {"linestyle": "", "marker": "o", "color": colour}
        axis.plot(middle, got, gid=f"realised-{name}", label="realised", **look)
        percent(axis)
        figure.add(axis, timeline, name)
    return figure


_NOT_UPDATED: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 6,
    "markeredgewidth": 0.7,
}


_RHO: dict[str, Any] = {"color": MUTED, "linestyle": "-", "linewidth": 0.6}


def steering(timeline: Timeline, prefix: str) -> Figure | None:
    """Distance of the ratio from the reference ratio; domains at their floor or with a forecast."""
    known = [(x, point) for x, point in timeline.evals if _has_distance(point)]
    if not known:
        return None
    figure = Figure(
        ident=f"{prefix}-steering",
        title="Steering of the ratio",
        caption=_STEERING_CAPTION,
        kind="number",
        unit="chi-square divergence; number of domains",
    )
    narrowed = any(radius_is_smaller(point.explanation) for _, point in known)
    figure.explain(
        *(
            [("largest distance allowed", REFERENCE), ("rho", _RHO)]
            if narrowed
            else [("largest distance allowed (rho)", REFERENCE)]
        ),
        *([("ratio not updated", _NOT_UPDATED)] if _not_updated(known) else []),
    )
    title = "distance from reference ratio"
    axis = panel(SMALL, title=title)
    _draw_distance(axis, known)
    figure.add(axis, timeline, title)
    counts = {
        "floor": (
            "domains at their floor",
            [(x, sum(p.explanation.at_floor.values())) for x, p in known],
        ),
        "forecast": (
            "domains whose forecast was used",
            [(x, _used_forecasts(p)) for x, p in known if _asked_for_forecasts(p)],
        ),
    }
    most = max(len(point.ratio) for _, point in known) or 1
    for kind, (title, count) in counts.items():
        if not count:
            continue
        axis = panel(SMALL, title=title)
        places, values = zip(*count, strict=True)
        axis.plot(places, values, gid=kind, label="domains", color=INK, **points(values))
        axis.set_ylim(-0.04 * most, 1.04 * most)
        axis.yaxis.get_major_locator().set_params(integer=True)
        figure.add(axis, timeline, title)
    return figure


_STEERING_CAPTION = (
    "First: how far the ratio is from the reference ratio (chi-square divergence), at most rho, "
    "and less where the excess losses differ too little to tell them from noise (scheduling.tau). "
    "The ratio stays nearer where the floors leave no more to move, or where no domain is farther "
    "behind than another."
)


def _has_distance(point: EvalPoint) -> bool:
    why = point.explanation
    return all(map(is_drawable, (why.rho, radius(why), why.divergence)))


def _draw_distance(axis: Any, evals: Points) -> None:
    """Draw the divergence of each ratio from its reference ratio, under the largest allowed."""
    places = [x for x, _ in evals]
    used = [point.explanation.divergence for _, point in evals]
    allowed = [radius(point.explanation) for _, point in evals]
    if any(radius_is_smaller(point.explanation) for _, point in evals):
        rho = [point.explanation.rho for _, point in evals]
        axis.plot(places, rho, gid="rho", label="rho", **_RHO)
    axis.plot(places, allowed, gid="radius", label="allowed", **REFERENCE)
    axis.plot(places, used, gid="divergence", label="distance", color=INK, **points(used))
    kept = _not_updated(evals)
    axis.plot(
        [x for x, _ in kept],
        [point.explanation.divergence for _, point in kept],
        gid="not-updated",
        **_NOT_UPDATED,
    )
    top = max(used + [point.explanation.rho for _, point in evals]) or 1.0
    axis.set_ylim(-0.04 * top, 1.08 * top)


def _not_updated(evals: Points) -> Points:
    return [(x, point) for x, point in evals if point.explanation.ratio_updated is False]


def _asked_for_forecasts(point: EvalPoint) -> bool:
    return bool(point.forecast or point.explanation.no_forecast)


def _used_forecasts(point: EvalPoint) -> int:
    refused = point.explanation.refused
    return sum(math.isfinite(v) and name not in refused for name, v in point.forecast.items())
