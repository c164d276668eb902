"""Forecasts against what came true, and the laws behind them as curves beside the losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drpruning.report.drawing import INK, MUTED, SMALL, panel
from drpruning.report.figure_parts import REFERENCE, Figure, own_colour
from drpruning.report.formats import drawable, is_drawable
from drpruning.report.timeline import Points, Stretch, Timeline, series
from drpruning.runs.counterfactuals import loss_at, split_data
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord
from drpruning.scheduling import Explanation

_AS_TRAINED: dict[str, Any] = {"linestyle": (0, (4, 1.6)), "linewidth": 1.1}
_AT_SHARE: dict[str, Any] = {"color": INK, "linestyle": (0, (1.2, 1.4)), "linewidth": 1.1}
_INTERVAL: dict[str, Any] = {"color": INK, "linewidth": 0.8}
_POINTS = 24
"""Of a curve beyond the last evaluation."""


_FORECAST: dict[str, Any] = {
    "color": MUTED,
    "linestyle": "",
    "marker": "x",
    "markersize": 5,
    "markeredgewidth": 1.0,
}
_REFUSED: dict[str, Any] = _FORECAST | {"marker": "o", "markerfacecolor": "none"}
_BAND: dict[str, Any] = {"color": MUTED, "alpha": 0.25, "linewidth": 0}
_CAME_TRUE: dict[str, Any] = {"color": INK, "linestyle": (0, (1.2, 1.4)), "linewidth": 1.3}
_MOST_MARKS = 20
_FORECAST_CAPTION = (
    "The band is the 90% interval of the loss that was forecast, at each step, for the end of the "
    "phase; the dotted line is the loss that it ended with. No forecast counts for more than the "
    "smallest loss seen of a model of final size, so it can lie below its interval. At most about "
    f"{_MOST_MARKS} forecasts per panel are marked; those outside of its scale are not shown."
)


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """One domain: what its law says from one evaluation on.

    Attributes:
        as_trained: Steps and losses with the data that it got, then at its present share.
        at_share: Steps and losses at the share that its forecast is for; empty if not known.
        interval: Of the forecast, [low, high]; empty if not known.
    """

    domain: str
    as_trained: tuple[list[float], list[float]]
    at_share: tuple[list[float], list[float]]
    interval: list[float]


def forecasts(timeline: Timeline, domains: Sequence[str], prefix: str) -> Figure | None:
    """The forecasts of each domain with their intervals, against the loss at the end of the phase.

    Returns:
        None where nothing was forecast.
    """
    evals = timeline.evals
    shown = [name for name in domains if any(_is_forecast(p, name) for _, p in evals)]
    if not shown:
        return None
    figure = Figure(
        ident=f"{prefix}-forecasts",
        title="Forecasts against what came true",
        caption=_FORECAST_CAPTION,
        kind="perplexity",
    )
    figure.explain(
        ("the model on validation data", {"color": INK}),
        ("forecast", _FORECAST),
        *(
            [("forecast not used", _REFUSED)]
            if any(p.explanation.refused for _, p in evals)
            else []
        ),
        *(
            [("90% interval", _BAND | {"linewidth": 9})]
            if any(p.explanation.forecast_interval for _, p in evals)
            else []
        ),
        *(
            [("loss at the end", _CAME_TRUE)]
            if any(stretch.phase.end for stretch in timeline.stretches)
            else []
        ),
    )
    for name in shown:
        axis = panel(SMALL, title=name)
        low, high = _limits(evals, name)
        axis.set_ylim(low, high)
        for stretch in timeline.stretches:
            _draw_forecasts(axis, stretch, name, (2 * low - high, 2 * high - low))
        places, losses = series(evals, lambda point: point.loss, name)
        axis.plot(places, losses, gid=f"loss-{name}", label="model", **own_colour(domains, name))
        figure.add(axis, timeline, name)
    return figure


def _is_forecast(point: EvalPoint, name: str) -> bool:
    return is_drawable(point.forecast.get(name))


def _limits(evals: Points, name: str) -> tuple[float, float]:
    """The scale of a panel: the losses from the first forecast on, whatever the forecasts are."""
    since = next(i for i, (_, point) in enumerate(evals) if _is_forecast(point, name))
    kept = series(evals[since:], lambda point: point.loss, name)[1]
    kept = kept or series(evals, lambda point: point.loss, name)[1] or [0.0]
    margin = 0.2 * (max(kept) - min(kept)) or 0.05
    return min(kept) - margin, max(kept) + margin


def _draw_forecasts(axis: Any, stretch: Stretch, name: str, limits: tuple[float, float]) -> None:
    """Draw intervals and forecasts of one phase, those that were not used with another mark."""
    evals = [(stretch.place(point.step), point) for point in stretch.phase.evals]
    if not any(_is_forecast(point, name) for _, point in evals):
        return
    ident = f"{stretch.phase.name}-{name}"
    axis.fill_between(*_band(evals, name, limits), gid=f"interval-{ident}", **_BAND)
    for kind, label, look in (
        ("forecast", "forecast", _FORECAST),
        ("refused", "forecast not used", _REFUSED),
    ):
        chosen = [
            (x, p) for x, p in evals if (name in p.explanation.refused) == (kind == "refused")
        ]
        marks = series(chosen, lambda point: point.forecast, name)
        every = math.ceil(len(marks[0]) / _MOST_MARKS) or 1
        axis.plot(*marks, gid=f"{kind}-{ident}", label=label, markevery=every, **look)
    last = evals[-1][1].loss.get(name, math.nan)
    if stretch.phase.end is not None and is_drawable(last):
        ends = [stretch.left, stretch.left + stretch.width]
        axis.plot(ends, [last, last], gid=f"end-{ident}", label="at the end", **_CAME_TRUE)


def _band(
    evals: Points, name: str, limits: tuple[float, float]
) -> tuple[list[float], list[float], list[float]]:
    """The intervals as x, low and high of a band with gaps, cut off at the limits.

    Each interval reaches half-way to the evaluations before and after.
    """
    places = [x for x, _ in evals]
    middles = [(before + after) / 2 for before, after in pairwise(places)]
    edges = [places[0], *middles, places[-1]] if middles else [places[0] - 0.01, places[0] + 0.01]
    x: list[float] = []
    lows: list[float] = []
    highs: list[float] = []
    for (_, point), (left, right) in zip(evals, pairwise(edges), strict=True):
        pair = point.explanation.forecast_interval.get(name, (math.nan, math.nan))
        low, high = (min(max(value, limits[0]), limits[1]) for value in pair)
        if math.isnan(pair[0]) or math.isnan(pair[1]):
            low = high = math.nan
        x += [left, right]
        lows += [low, low]
        highs += [high, high]
    return x, lows, highs


def forecast_curves(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The laws of one evaluation from there to the end of training, beside the real losses.

    While a phase is in progress that evaluation is the latest with a law. Of a complete phase it is
    the first one in the second half of the steps, so that the real losses show what came true.

    Returns:
        None where no evaluation has a law, as where forecasts are fitted to steps.
    """
    evals = phase.evals
    start = _start(phase)
    if start is None:
        return None
    made, total = evals[start], max(phase.total_steps or 0, phase.last_step)
    shown = [name for name in domains if name in made.explanation.forecast_law]
    seen = evals[start // 2 :]
    figure = Figure(
        ident=f"{prefix}-{phase.name}-forecast-curves",
        title="Loss at other shares",
        caption=_caption(made, seen),
        kind="perplexity",
    )
    figure.explain(
        ("the model on validation data", {"color": INK}),
        ("law, at the shares trained", {"color": INK} | _AS_TRAINED),
        ("law, at the forecast's share", _AT_SHARE),
        ("reference loss", REFERENCE),
    )
    timeline = Timeline.part(phase, seen[0].step, total)
    for name in shown:
        share = made.explanation.forecast_share.get(name, math.nan)
        where = f" ({100 * share:.3g}%)" if is_drawable(share) else ""
        axis = panel(SMALL, title=f"{name}{where}")
        place = timeline.stretches[0].place
        points = [(place(point.step), point) for point in seen]
        _draw(axis, points, _curves(evals[start:], total, name), place, own_colour(domains, name))
        figure.add(axis, timeline, name)
    return figure


def _caption(made: EvalPoint, seen: Sequence[EvalPoint]) -> str:
    last = seen[-1].step
    trained = (
        "with the data that the domain got, "
        if last > made.step
        else "if the domain kept its present share, "
    )
    return (
        f"From step {made.step:,} on, what the law that was fitted to the losses up to there says: "
        f"dashed {trained}dotted if the rest of training gave it the share that its forecast is "
        "for (in brackets), with the forecast's 90% interval at the end. Where the dotted line "
        "falls well below the dashed one, more data would help. Each panel has its own scale, and "
        "the law is that of a model of final size."
    )


def _start(phase: PhaseRecord) -> int | None:
    """The evaluation whose laws are drawn."""
    made = [i for i, point in enumerate(phase.evals) if _has_curve(point)]
    if phase.end is None:
        return made[-1] if made else None
    half = phase.last_step / 2
    later = [i for i in made if half <= phase.evals[i].step < phase.last_step]
    earlier = [i for i in made if phase.evals[i].step < half]
    return later[0] if later else earlier[-1] if earlier else None


def _has_curve(point: EvalPoint) -> bool:
    return any(name in point.data for name in point.explanation.forecast_law)


def _draw(
    axis: Any,
    seen: Points,
    curves: _Curves,
    place: Callable[[float], float],
    colour: dict[str, Any],
) -> None:
    """Draw one panel.

    Args:
        axis: The panel.
        seen: The evaluations whose losses are shown.
        curves: What the law says.
        place: Gives the place of a step on the axis.
        colour: The domain's.
    """
    name = curves.domain
    losses = series(seen, lambda point: point.loss, name)
    axis.plot(*losses, gid=f"loss-{name}", label="model", **colour)
    references = series(seen, lambda point: point.reference_loss, name)
    for gid, label, (steps, values), look in (
        ("trained", "law, as trained", curves.as_trained, colour | _AS_TRAINED),
        ("counterfactual", "law, at the forecast's share", curves.at_share, _AT_SHARE),
    ):
        axis.plot([place(s) for s in steps], values, gid=f"{gid}-{name}", label=label, **look)
    kept = [*losses[1], *references[1], curves.as_trained[1][-1], curves.at_share[1][-1]]
    kept = [value for value in kept if is_drawable(value)]
    if kept:
        # Neither an absurd interval nor the steep beginning of a law must flatten the curves.
        margin = 0.08 * (max(kept) - min(kept)) or 0.05
        axis.set_ylim(min(kept) - margin, max(kept) + margin)
    if references[0]:  # the last one stays in force, as far as is known
        references = ([*references[0], 1.0], [*references[1], references[1][-1]])
    axis.plot(*references, gid=f"reference-{name}", label="reference", **REFERENCE)
    if len(curves.interval) == 2:
        ends = list(curves.interval)
        axis.plot([1.0, 1.0], ends, gid=f"interval-{name}", marker="_", **_INTERVAL)


def _curves(since: Sequence[EvalPoint], total: int, name: str) -> _Curves:
    made, last = since[0], since[-1]
    law = made.explanation.forecast_law[name]
    rest = [last.step + (total - last.step) * i / _POINTS for i in range(1, _POINTS + 1)]
    ahead = rest if total > last.step else []
    trained = [loss_at(law, *split_data(point.data, name)) for point in since]
    present = last.ratio.get(name, math.nan)
    trained += [_loss_after(law, last, name, step, present) for step in ahead]
    share = _share(made.explanation, name)
    steps = [made.step + (total - made.step) * i / _POINTS for i in range(_POINTS + 1)]
    other = [_loss_after(law, made, name, step, share) for step in steps]
    return _Curves(
        domain=name,
        interval=[drawable(value) for value in made.explanation.forecast_interval.get(name, ())],
        as_trained=([*(float(p.step) for p in since), *ahead], list(map(drawable, trained))),
        at_share=(steps, list(map(drawable, other))),
    )


def _share(explanation: Explanation, name: str) -> float:
    return explanation.forecast_share.get(name, math.nan)


def _loss_after(law: Any, point: EvalPoint, name: str, step: float, share: float) -> float:
    """The loss at a later step if the domain got this share from an evaluation on."""
    own, other = split_data(point.data, name)
    more = step - point.step
    return loss_at(law, own + share * more, other + (1 - share) * more)
