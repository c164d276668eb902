"""The figure of validation losses with the references and forecasts that they are held against."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from drpruning.report.captions import finite, range_of_changes
from drpruning.report.curves import REFERENCE, Figure, finish, own_colour, present, series
from drpruning.report.drawing import INK, MUTED, legend, panels, points, shorten
from drpruning.report.records import EvalPoint, PhaseRecord

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


def validation_loss(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Loss, reference loss and forecasts of each domain in a panel of its own."""
    shown = present(phase.evals, domains, lambda point: point.loss)
    if not shown:
        return None
    figure, axes = panels(len(shown), columns=3, height=1.75)
    beyond = False
    for axis, name in zip(axes, shown, strict=True):
        beyond |= _draw_forecasts(axis, phase.evals, name)
        references = series(phase.evals, lambda point: point.reference_loss, name)
        axis.plot(*references, gid=f"reference-{name}", **REFERENCE)
        steps, losses = series(phase.evals, lambda point: point.loss, name)
        look = own_colour(domains, name) | points(losses)
        axis.plot(steps, losses, gid=f"loss-{name}", **look)
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
    axes[0].set_ylabel("nats a token")
    legend(figure, *_entries(phase.evals), columns=5)
    caption = _caption(phase.evals, shown, beyond=beyond)
    return finish(figure, f"{prefix}-validation-loss", "Validation loss per domain", caption)


def _draw_forecasts(axis: Any, evals: Sequence[EvalPoint], name: str) -> bool:
    """Draw intervals and forecasts, those not used apart; return whether any lies outside."""
    low, high = _limits(evals, name)
    axis.set_ylim(low, high)
    band = _band(evals, name, (2 * low - high, 2 * high - low))
    axis.fill_between(*band, gid=f"interval-{name}", **_INTERVAL)
    used = series([p for p in evals if name not in p.explanation.refused], _forecast, name)
    refused = series([p for p in evals if name in p.explanation.refused], _forecast, name)
    axis.plot(*used, gid=f"forecast-{name}", markevery=_every(used[0]), **_FORECAST)
    axis.plot(*refused, gid=f"refused-{name}", markevery=_every(refused[0]), **_REFUSED)
    return any(not low <= value <= high for value in used[1] + refused[1])


def _every(steps: Sequence[int]) -> int:
    """Of how many marks one is drawn, so that they can be told apart."""
    return math.ceil(len(steps) / _MOST_MARKS) or 1


def _forecast(point: EvalPoint) -> dict[str, float]:
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


def _caption(evals: Sequence[EvalPoint], shown: Sequence[str], *, beyond: bool) -> str:
    losses = {name: series(evals, lambda point: point.loss, name)[1] for name in shown}
    changes = {name: values[-1] - values[0] for name, values in losses.items()}
    said = ["Each panel is one domain with its own scale.", range_of_changes(changes)]
    if any(finite(point.reference_loss) for point in evals):
        said.append(
            "The distance from the solid line to the dashed one is the excess loss that draws data "
            "to a domain."
        )
    else:
        said.append("This run had no reference losses yet.")
    if any(point.explanation.forecast_interval for point in evals):
        said.append(
            "At each step the band is the 90% interval of what was then forecast for the end of "
            "training: the narrower, the more the forecast can be trusted. A forecast counts for "
            "at most the smallest loss seen of a model of final size, so it can lie below its "
            "interval."
        )
    made = sum(len(finite(point.forecast)) for point in evals)
    refused = sum(
        math.isfinite(value) and name in point.explanation.refused
        for point in evals
        for name, value in point.forecast.items()
    )
    if made > _MOST_MARKS * len(shown):
        said.append("Not every forecast has its mark.")
    if refused:
        said.append(f"Circles: {refused:,} of {made:,} forecasts were not used.")
    if beyond:
        said.append("Forecasts far from the curves lie outside the panels.")
    return " ".join(said)
