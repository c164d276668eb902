"""The figures of a page: one function draws one, with a fixed caption that says how to read it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drpruning.report.drawing import (
    INK,
    MUTED,
    ink_style,
    label_lines,
    legend,
    panels,
    percent,
    points,
    series_style,
    shorten,
    to_svg,
)
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord, RunRecord

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


def draw_shares(
    evals: Sequence[EvalPoint], domains: Sequence[str], pick: Callable[[EvalPoint], Numbers]
) -> Any:
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
    return figure


_FORECAST: dict[str, Any] = {
    "color": MUTED,
    "linestyle": "",
    "marker": "x",
    "markersize": 3.2,
    "markeredgewidth": 0.7,
}
_REFUSED: dict[str, Any] = _FORECAST | {"marker": "o", "markerfacecolor": "none"}
_INTERVAL: dict[str, Any] = {"color": MUTED, "alpha": 0.2, "linewidth": 0}
_MOST_MARKS = 30


_LOSS_CAPTION = (
    "Each panel is one domain with its own scale. The distance from the loss to its reference loss "
    "is the excess loss that draws data to a domain."
)
_FORECAST_CAPTION = (
    "The band is the 90% interval of the loss that was forecast, at each step, for the end of "
    "training: the narrower, the more the forecast can be trusted. No forecast counts for more "
    "than the smallest loss seen of a model of final size, so it can lie below its interval. "
    f"At most about {_MOST_MARKS} forecasts per panel are marked; those outside of its scale are "
    "not shown."
)


def validation_loss(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Loss, reference loss and forecasts of each domain in a panel of its own."""
    shown = present(phase.evals, domains, lambda point: point.loss)
    if not shown:
        return None
    figure, axes = panels(len(shown), columns=3, height=1.75)
    for axis, name in zip(axes, shown, strict=True):
        _draw_forecasts(axis, phase.evals, name)
        references = series(phase.evals, lambda point: point.reference_loss, name)
        axis.plot(*references, gid=f"reference-{name}", **REFERENCE)
        steps, losses = series(phase.evals, lambda point: point.loss, name)
        look = own_colour(domains, name) | points(losses)
        axis.plot(steps, losses, gid=f"loss-{name}", **look)
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
    axes[0].set_ylabel("nats per token")
    legend(figure, *_entries(phase.evals), columns=5)
    forecasts = any(point.explanation.forecast_interval for point in phase.evals)
    caption = f"{_LOSS_CAPTION} {_FORECAST_CAPTION}" if forecasts else _LOSS_CAPTION
    return finish(figure, f"{prefix}-validation-loss", "Validation loss per domain", caption)


def _draw_forecasts(axis: Any, evals: Sequence[EvalPoint], name: str) -> None:
    """Draw intervals and forecasts, those that were not used with another mark."""
    low, high = _limits(evals, name)
    axis.set_ylim(low, high)
    band = _band(evals, name, (2 * low - high, 2 * high - low))
    axis.fill_between(*band, gid=f"interval-{name}", **_INTERVAL)
    used = series([p for p in evals if name not in p.explanation.refused], _forecast, name)
    refused = series([p for p in evals if name in p.explanation.refused], _forecast, name)
    axis.plot(*used, gid=f"forecast-{name}", markevery=_every(used[0]), **_FORECAST)
    axis.plot(*refused, gid=f"refused-{name}", markevery=_every(refused[0]), **_REFUSED)


def _every(steps: Sequence[int]) -> int:
    """Of how many marks one is drawn, so that they can be told apart."""
    return math.ceil(len(steps) / _MOST_MARKS) or 1


def _forecast(point: EvalPoint) -> Numbers:
    return point.forecast


def _limits(evals: Sequence[EvalPoint], name: str) -> tuple[float, float]:
    """The scale of a panel: its losses and references, whatever the forecasts are."""
    kept = series(evals, lambda point: point.loss, name)[1]
    kept += series(evals, lambda point: point.reference_loss, name)[1]
    margin = 0.06 * (max(kept) - min(kept)) or 0.05
    return min(kept) - margin, max(kept) + margin


def _band(
    evals: Sequence[EvalPoint], name: str, limits: tuple[float, float]
) -> tuple[list[float], list[float], list[float]]:
    """The intervals as x, low and high of a band with gaps, cut off at the limits.

    Each interval reaches half-way to the evaluations before and after.
    """
    steps = [float(point.step) for point in evals]
    middles = [(before + after) / 2 for before, after in pairwise(steps)]
    edges = [steps[0], *middles, steps[-1]] if middles else [steps[0] - 0.5, steps[0] + 0.5]
    x: list[float] = []
    lows: list[float] = []
    highs: list[float] = []
    for point, (left, right) in zip(evals, pairwise(edges), strict=True):
        pair = point.explanation.forecast_interval.get(name, (math.nan, math.nan))
        low, high = (min(max(value, limits[0]), limits[1]) for value in pair)
        if math.isnan(pair[0]) or math.isnan(pair[1]):
            low = high = math.nan
        x += [left, right]
        lows += [low, low]
        highs += [high, high]
    return x, lows, highs


def _entries(evals: Sequence[EvalPoint]) -> list[tuple[str, dict[str, Any]]]:
    """The legend: what there is to see."""
    entries: list[tuple[str, dict[str, Any]]] = [
        ("validation loss", {"color": INK, "linewidth": 1.4}),
        ("reference loss", REFERENCE),
        ("forecast", _FORECAST),
    ]
    if any(point.explanation.refused for point in evals):
        entries.append(("forecast not used", _REFUSED))
    if any(point.explanation.forecast_interval for point in evals):
        entries.append(("90% interval", _INTERVAL | {"linewidth": 7}))
    return entries


_NOT_UPDATED: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 6,
    "markeredgewidth": 0.7,
}


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
    legend(figure, ("largest distance allowed (rho)", REFERENCE), *skipped)
    return finish(figure, f"{prefix}-steering", "Steering of the ratio", _STEERING_CAPTION)


_STEERING_CAPTION = (
    "Left: how far the ratio is from the reference ratio (chi-square divergence), at most rho. The "
    "ratio stays nearer where the floors leave no more to move, or where no domain is farther "
    "behind than another."
)


def _has_distance(point: EvalPoint) -> bool:
    return is_drawable(point.explanation.rho) and is_drawable(point.explanation.divergence)


def _draw_distance(axis: Any, evals: Sequence[EvalPoint]) -> None:
    """Draw the divergence of each ratio from its reference ratio, under the largest allowed."""
    steps = [point.step for point in evals]
    used = [point.explanation.divergence for point in evals]
    allowed = [point.explanation.rho for point in evals]
    axis.plot(steps, allowed, gid="radius", **REFERENCE)
    axis.plot(steps, used, gid="divergence", color=INK, **points(used))
    kept = _not_updated(evals)
    axis.plot(
        [p.step for p in kept],
        [p.explanation.divergence for p in kept],
        gid="not-updated",
        **_NOT_UPDATED,
    )
    top = max(used + allowed) or 1.0
    axis.set_ylim(-0.04 * top, 1.08 * top)
    axis.set_title("distance from the reference ratio", loc="left")


def _not_updated(evals: Sequence[EvalPoint]) -> list[EvalPoint]:
    return [point for point in evals if point.explanation.ratio_updated is False]


def _asked_for_forecasts(point: EvalPoint) -> bool:
    return bool(point.forecast or point.explanation.no_forecast)


def _used_forecasts(point: EvalPoint) -> int:
    refused = point.explanation.refused
    return sum(math.isfinite(v) and name not in refused for name, v in point.forecast.items())


def phase_figures(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> list[Figure]:
    """Draw all that the records of a phase can show.

    Args:
        phase: Its records.
        domains: All domains of the page; the position of one decides its colour.
        prefix: Begins the id of each figure.
    """
    prefix = f"{prefix}-{phase.name}"
    made = (
        training_loss(phase, prefix),
        validation_loss(phase, domains, prefix),
        ratio(phase, domains, prefix),
        reference_ratio(phase, domains, prefix),
        steering(phase, prefix),
        realised_share(phase, domains, prefix),
        excess_loss(phase, domains, prefix),
        sparsity(phase, prefix),
    )
    return [figure for figure in made if figure is not None]


def training_loss(phase: PhaseRecord, prefix: str) -> Figure | None:
    """Language modelling loss of the training batches over steps."""
    logged = [point for point in phase.steps if is_drawable(point.loss)]
    if not logged:
        return None
    figure, (axis,) = panels(1, columns=1, height=2.2)
    values = [point.loss for point in logged]
    axis.plot(
        [p.step for p in logged], values, color=INK, gid="loss", linewidth=1.1, **points(values)
    )
    axis.set_ylabel("nats per token")
    caption = (
        "Mean loss of the training batches. These follow the data ratio, so the level also moves "
        "when the ratio does; compare models by their validation loss."
    )
    return finish(figure, f"{prefix}-training-loss", "Training loss", caption)


def ratio(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The data ratio over steps."""
    figure = draw_shares(phase.evals, domains, lambda point: point.ratio)
    if figure is None:
        return None
    return finish(
        figure,
        f"{prefix}-ratio",
        "Data ratio",
        "Share of each domain in the batches, set at each evaluation for the steps that follow.",
    )


def reference_ratio(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The reference ratio over steps, from which the ratio may be only so far."""
    figure = draw_shares(phase.evals, domains, lambda point: point.reference_ratio)
    if figure is None:
        return None
    return finish(
        figure,
        f"{prefix}-reference-ratio",
        "Reference ratio",
        "The ratio from which the data ratio may be only so far away; it follows the data ratio "
        "slowly, once scheduling.reference_start is reached.",
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


def excess_loss(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Loss minus reference loss: the score that the ratio follows."""
    shown = present(phase.evals, domains, lambda point: point.excess)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    axis.axhline(0.0, color=MUTED, linewidth=0.8)
    draw_labelled(axis, phase.evals, domains, shown, lambda point: point.excess)
    axis.set_ylabel("nats per token")
    caption = (
        "Validation loss minus reference loss. Policies that follow it give more data to the "
        "domains that are above the others."
    )
    return finish(figure, f"{prefix}-excess", "Excess loss", caption)


def sparsity(phase: PhaseRecord, prefix: str) -> Figure | None:
    """Expected sparsity per granularity against its scheduled target."""
    logged = [point for point in phase.steps if point.sparsity]
    names = list(dict.fromkeys(name for point in logged for name in point.sparsity or {}))
    if not names:
        return None
    figure, axes = panels(len(names), columns=4 if len(names) != 3 else 3, height=1.75)
    steps = [point.step for point in logged]
    for axis, name in zip(axes, names, strict=True):
        target = [drawable((point.target_sparsity or {}).get(name, math.nan)) for point in logged]
        actual = [drawable((point.sparsity or {}).get(name, math.nan)) for point in logged]
        axis.plot(steps, target, gid=f"target-{name}", **REFERENCE)
        axis.plot(steps, actual, gid=f"sparsity-{name}", color=INK, **points(actual))
        axis.set_title(shorten(name), loc="left", parse_math=False)
        axis.set_ylim(bottom=0.0)
        percent(axis)
    legend(
        figure,
        ("expected sparsity", {"color": INK, "linewidth": 1.4}),
        ("its target", REFERENCE),
    )
    caption = (
        "Share of each kind of part that the masks remove in expectation; the solid line should "
        "settle on the dashed one."
    )
    return finish(figure, f"{prefix}-sparsity", "Sparsity against its target", caption)


def mask_convergence(run: RunRecord, prefix: str) -> Figure | None:
    """Agreement of the plan at each evaluation with the final plan (Appendix B.1, Figure 7)."""
    rows = run.similarity
    names = list(dict.fromkeys(name for row in rows for name in row.similarity))
    if not names:
        return None
    figure, (axis,) = panels(1, columns=1, height=2.4)
    for index, name in enumerate(names):
        values = [drawable(row.similarity.get(name, math.nan)) for row in rows]
        look = {**ink_style(index), **points(values)}
        axis.plot([row.step for row in rows], values, gid=f"similarity-{name}", **look)
    percent(axis)
    axis.set_ylabel("same decision")
    legend(figure, *((shorten(name), ink_style(index)) for index, name in enumerate(names)))
    caption = (
        "Share of parts on which the plan that would have been cut at a step agrees with the plan "
        "that was cut. Masks have converged where all lines stay near 100%."
    )
    return finish(figure, f"{prefix}-mask-convergence", "Convergence of the masks", caption)


def comparison_figure(
    ident: str, runs: Sequence[tuple[str, PhaseRecord]], domains: Sequence[str]
) -> Figure | None:
    """Average and worst-domain validation loss of several runs in one phase, over common domains.

    Args:
        ident: The figure's id.
        runs: Label and records of each.
        domains: Those that all runs have. An evaluation at which the loss of one is not known
            leaves a gap: the average would be of other domains than the rest.
    """
    figure, axes = panels(2, columns=2, height=2.6)
    summaries: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
        ("average", lambda losses: sum(losses) / len(losses)),
        ("worst", max),
    )
    for axis, (kind, summary) in zip(axes, summaries, strict=True):
        for index, (_, phase) in enumerate(runs):
            rows = [[drawable(p.loss.get(d, math.nan)) for d in domains] for p in phase.evals]
            values = [math.nan if any(map(math.isnan, row)) else summary(row) for row in rows]
            look = ink_style(index) | points(values)
            axis.plot([p.step for p in phase.evals], values, gid=f"{kind}-{index}", **look)
        axis.set_title("average over domains" if kind == "average" else "worst domain", loc="left")
    axes[0].set_ylabel("nats per token")
    legend(figure, *((shorten(label, 30), ink_style(i)) for i, (label, _) in enumerate(runs)))
    caption = f"Validation loss, lower is better; over the domains {', '.join(domains)}."
    return finish(figure, ident, "Validation loss of the runs", caption)
