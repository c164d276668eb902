"""Figures of the data ratio: shares over steps, and how far and why they were moved."""

import math
from collections.abc import Sequence
from typing import Any

from drpruning.report.drawing import (
    INK,
    MUTED,
    legend,
    panels,
    percent,
    points,
    shorten,
)
from drpruning.report.figure_parts import (
    REFERENCE,
    Figure,
    drawable,
    finish,
    is_drawable,
    own_colour,
    present,
    radius,
    radius_is_smaller,
    series,
    shares_figure,
)
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord


def ratio(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The data ratio over steps."""
    return shares_figure(
        phase.evals,
        domains,
        lambda point: point.ratio,
        ident=f"{prefix}-ratio",
        title="Data ratio",
        caption="Share of each domain in the batches, set at each evaluation for the steps that "
        "follow.",
    )


def reference_ratio(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The reference ratio over steps, from which the ratio may be only so far."""
    return shares_figure(
        phase.evals,
        domains,
        lambda point: point.reference_ratio,
        ident=f"{prefix}-reference-ratio",
        title="Reference ratio",
        caption="The ratio from which the data ratio may be only so far away; it follows the data "
        "ratio slowly, once scheduling.reference_start is reached.",
    )


def realised_share(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Share of the blocks that were trained on, against the ratio that was asked for."""
    shown = present(phase.evals, domains, lambda point: point.realised_share)
    if not shown:
        return None
    pairs = list(zip(phase.evals, phase.evals[1:], strict=False))
    figure, axes = panels(len(shown), columns=3, height=1.6)
    for axis, name in zip(axes, shown, strict=True):
        asked = series(phase.evals, lambda point: point.ratio, name)
        axis.step(*asked, where="post", gid=f"ratio-{name}", color=MUTED, linewidth=1.0)
        middle = [(before.step + after.step) / 2 for before, after in pairs]
        got = [drawable(after.realised_share.get(name, math.nan)) for _, after in pairs]
        colour = own_colour(domains, name)["color"]
        axis.plot(middle, got, linestyle="", marker="o", color=colour, gid=f"realised-{name}")
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
        percent(axis)
    legend(
        figure,
        ("ratio", {"color": MUTED, "linewidth": 1.0}),
        ("realised share of the segment", {"color": INK, "linestyle": "", "marker": "o"}),
    )
    caption = (
        "Dots are the shares of the segments (the training between two evaluations) as trained, "
        "the line is the ratio that was asked for; the dots should lie on it."
    )
    return finish(figure, f"{prefix}-realised-share", "Realised share against ratio", caption)


_NOT_UPDATED: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 6,
    "markeredgewidth": 0.7,
}


_RHO: dict[str, Any] = {"color": MUTED, "linestyle": "-", "linewidth": 0.6}


def steering(phase: PhaseRecord, prefix: str) -> Figure | None:
    """Distance of the ratio from the reference ratio; domains at their floor or with a forecast."""
    points_known = [point for point in phase.evals if _has_distance(point)]
    if not points_known:
        return None
    at_floor = [(p.step, sum(p.explanation.at_floor.values())) for p in points_known]
    forecasts = [(p.step, _used_forecasts(p)) for p in points_known if _asked_for_forecasts(p)]
    counts = {
        "floor": ("domains at their floor", at_floor),
        "forecast": ("domains whose forecast was used", forecasts),
    }
    drawn = {kind: count for kind, count in counts.items() if count[1]}
    figure, axes = panels(1 + len(drawn), columns=3, height=1.75)
    _draw_distance(axes[0], points_known)
    most = max(len(point.ratio) for point in points_known) or 1
    for axis, (kind, (title, count)) in zip(axes[1:], drawn.items(), strict=True):
        steps, values = zip(*count, strict=True)
        axis.plot(steps, values, gid=kind, color=INK, **points(values))
        axis.set_xlim(axes[0].get_xlim())
        axis.set_ylim(-0.04 * most, 1.04 * most)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title, loc="left")
    skipped = [("ratio not updated", _NOT_UPDATED)] if _not_updated(points_known) else []
    narrowed = any(radius_is_smaller(point.explanation) for point in points_known)
    limits = (
        [("largest distance allowed", REFERENCE), ("rho", _RHO)]
        if narrowed
        else [("largest distance allowed (rho)", REFERENCE)]
    )
    legend(figure, *limits, *skipped)
    return finish(figure, f"{prefix}-steering", "Steering of the ratio", _STEERING_CAPTION)


_STEERING_CAPTION = (
    "Left: how far the ratio is from the reference ratio (chi-square divergence), at most rho, and "
    "less where the excess losses differ too little to tell them from noise (scheduling.tau). The "
    "ratio stays nearer where the floors leave no more to move, or where no domain is farther "
    "behind than another."
)


def _has_distance(point: EvalPoint) -> bool:
    why = point.explanation
    return all(map(is_drawable, (why.rho, radius(why), why.divergence)))


def _draw_distance(axis: Any, evals: Sequence[EvalPoint]) -> None:
    """Draw the divergence of each ratio from its reference ratio, under the largest allowed."""
    steps = [point.step for point in evals]
    used = [point.explanation.divergence for point in evals]
    allowed = [radius(point.explanation) for point in evals]
    if any(radius_is_smaller(point.explanation) for point in evals):
        axis.plot(steps, [point.explanation.rho for point in evals], gid="rho", **_RHO)
    axis.plot(steps, allowed, gid="radius", **REFERENCE)
    axis.plot(steps, used, gid="divergence", color=INK, **points(used))
    kept = _not_updated(evals)
    axis.plot(
        [p.step for p in kept],
        [p.explanation.divergence for p in kept],
        gid="not-updated",
        **_NOT_UPDATED,
    )
    top = max(used + [point.explanation.rho for point in evals]) or 1.0
    axis.set_ylim(-0.04 * top, 1.08 * top)
    axis.set_title("distance from the reference ratio", loc="left")


def _not_updated(evals: Sequence[EvalPoint]) -> list[EvalPoint]:
    return [point for point in evals if point.explanation.ratio_updated is False]


def _asked_for_forecasts(point: EvalPoint) -> bool:
    return bool(point.forecast or point.explanation.no_forecast)


def _used_forecasts(point: EvalPoint) -> int:
    refused = point.explanation.refused
    return sum(math.isfinite(v) and name not in refused for name, v in point.forecast.items())
