"""The figure of how the ratio was steered: the ball, the floors and the forecasts over steps."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from drpruning.report.curves import REFERENCE, Figure, finish
from drpruning.report.drawing import INK, legend, panels, points
from drpruning.report.records import EvalPoint, PhaseRecord

_KEPT: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 6,
    "markeredgewidth": 0.7,
}


def steering(phase: PhaseRecord, prefix: str) -> Figure | None:
    """How far the ball was used, how many domains were at their floor and had a used forecast."""
    told = [point for point in phase.evals if point.explanation.has_ball]
    if not told:
        return None
    counts = {
        "floor": ("domains at their floor", [(p.step, len(_at_floor(p))) for p in told]),
        "forecast": (
            "domains whose forecast was used",
            [(p.step, _used_forecasts(p)) for p in told if _asked_for_forecasts(p)],
        ),
    }
    drawn = {kind: count for kind, count in counts.items() if count[1]}
    figure, axes = panels(1 + len(drawn), columns=3, height=1.75)
    _draw_ball(axes[0], told)
    most = max(len(point.ratio) for point in told) or 1
    for axis, (kind, (title, count)) in zip(axes[1:], drawn.items(), strict=True):
        steps, values = zip(*count, strict=True)
        axis.plot(steps, values, gid=kind, color=INK, **points(values))
        axis.set_xlim(axes[0].get_xlim())
        axis.set_ylim(-0.04 * most, 1.04 * most)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title, loc="left")
    kept = [("ratio not updated", _KEPT)] if _kept(told) else []
    legend(figure, ("radius of the ball", REFERENCE), *kept)
    return finish(figure, f"{prefix}-steering", "Steering of the ratio", _caption(told, most))


def _draw_ball(axis: Any, told: Sequence[EvalPoint]) -> None:
    """The divergence of each ratio from its reference ratio, under the radius."""
    steps = [point.step for point in told]
    used = [point.explanation.divergence for point in told]
    radius = [point.explanation.rho for point in told]
    axis.plot(steps, radius, gid="radius", **REFERENCE)
    axis.plot(steps, used, gid="ball", color=INK, **points(used))
    kept = _kept(told)
    axis.plot([p.step for p in kept], [p.explanation.divergence for p in kept], gid="kept", **_KEPT)
    top = max(used + radius) or 1.0
    axis.set_ylim(-0.04 * top, 1.08 * top)
    axis.set_title("divergence from the reference ratio", loc="left")


def _kept(told: Sequence[EvalPoint]) -> list[EvalPoint]:
    return [point for point in told if point.explanation.ratio_updated is False]


def _at_floor(point: EvalPoint) -> list[str]:
    return [name for name, binds in point.explanation.at_floor.items() if binds]


def _asked_for_forecasts(point: EvalPoint) -> bool:
    return bool(point.forecast or point.explanation.no_forecast)


def _used_forecasts(point: EvalPoint) -> int:
    refused = point.explanation.refused
    return sum(math.isfinite(v) and name not in refused for name, v in point.forecast.items())


def _caption(told: Sequence[EvalPoint], domains: int) -> str:
    """What happened, in numbers."""
    kept = len(_kept(told))
    bound = sum(point.explanation.ball_binds for point in told if point not in _kept(told))
    updates = len(told) - kept
    said = ["The ratio may depart from the reference ratio by no more than the radius of the ball."]
    if updates:
        said.append(f"It went to the edge at {bound:,} of {_counted(updates, 'update')}.")
    if bound < updates:
        said.append(
            "Elsewhere it stayed inside: the floors left no more, or no domain was farther behind "
            "than another."
        )
    at_floor = Counter(name for point in told for name in _at_floor(point))
    if at_floor:
        most = max(len(_at_floor(point)) for point in told)
        name, times = at_floor.most_common(1)[0]
        said.append(
            f"At most {most} of {domains} domains were at their floor, most often {name} "
            f"(at {times:,} of {_counted(len(told), 'evaluation')})."
        )
    moved = [point.step for point in told if point.explanation.reference_ratio_updated]
    if moved:
        said.append(
            f"The reference ratio moved at {_counted(len(moved), 'evaluation')}, first at step "
            f"{moved[0]:,}."
        )
    if kept:
        said.append(f"At {_counted(kept, 'evaluation')} the ratio was not updated (circles).")
    return " ".join(said)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
