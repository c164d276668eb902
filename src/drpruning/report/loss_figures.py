"""Figures of validation losses: reference losses, forecasts and the excess that is steered by."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from drpruning.report.drawing import (
    INK,
    MUTED,
    legend,
    panels,
    points,
    shorten,
)
from drpruning.report.figure_parts import (
    REFERENCE,
    Figure,
    Numbers,
    divergences,
    draw_labelled,
    finish,
    height_for,
    own_colour,
    present,
    series,
)
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord
from drpruning.runs.reference_origin import is_combined

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
_COMBINED_CAPTION = (
    "Each panel is one domain with its own scale. Two distances draw data to a domain: from the "
    "loss to its reference loss, and from the loss to its forecast (at most what the curve still "
    "falls). The excess loss is their geometric mean, with weights 3/4 and 1/4."
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
    caption = _COMBINED_CAPTION if _are_combined(phase.evals) else _LOSS_CAPTION
    caption += f" {_FORECAST_CAPTION}" if forecasts else ""
    return finish(figure, f"{prefix}-validation-loss", "Validation loss per domain", caption)


def _are_combined(evals: Sequence[EvalPoint]) -> bool:
    """Whether reference losses and forecasts both counted at an evaluation."""
    return any(is_combined(point, name) for point in evals for name in point.excess)


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


def excess_loss(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Excess losses: the scores that the ratio follows."""
    shown = present(phase.evals, domains, lambda point: point.excess)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    axis.axhline(0.0, color=MUTED, linewidth=0.8)
    draw_labelled(axis, phase.evals, domains, shown, lambda point: point.excess)
    axis.set_ylabel("nats per token")
    combined = (
        ", combined with validation loss minus forecast once there is one (the geometric mean of "
        "the two with weights 3/4 and 1/4, 0 where one of them is negative)"
    )
    caption = (
        f"Validation loss minus reference loss{combined if _are_combined(phase.evals) else ''}. "
        "Policies that follow it give more data to the domains that are above the others."
    )
    return finish(figure, f"{prefix}-excess", "Excess loss", caption)


def divergence(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Divergence from the teacher in the training batches of each domain."""
    shown = present(phase.evals, domains, divergences)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    axis.axhline(0.0, color=MUTED, linewidth=0.8)
    draw_labelled(axis, phase.evals, domains, shown, divergences)
    axis.set_ylabel("nats per token")
    caption = (
        "KL divergence from the teacher's distribution of the next token to the trained model's: "
        "the mean over the tokens that a domain was trained on since the evaluation before. At 0 "
        "the model predicts what the teacher does."
    )
    return finish(figure, f"{prefix}-divergence", "Divergence from the teacher", caption)
