"""The laws behind the forecasts as curves beside the losses, and as a table against the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drpruning.report.drawing import INK, legend, panels, shorten
from drpruning.report.figure_parts import (
    REFERENCE,
    Figure,
    drawable,
    finish,
    is_drawable,
    own_colour,
    series,
)
from drpruning.runs.counterfactuals import loss_at, split_data
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord
from drpruning.scheduling import Explanation

_AS_TRAINED: dict[str, Any] = {"linestyle": (0, (4, 1.6)), "linewidth": 1.1}
_AT_SHARE: dict[str, Any] = {"color": INK, "linestyle": (0, (1.2, 1.4)), "linewidth": 1.1}
_INTERVAL: dict[str, Any] = {"color": INK, "linewidth": 0.8}
_POINTS = 24
"""Of a curve beyond the last evaluation."""


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """One domain: what its law says from one evaluation on.

    Attributes:
        as_trained: Steps and losses with the data that it got, then at its present share.
        at_share: Steps and losses at the share that its forecast is for; empty if not known.
    """

    as_trained: tuple[list[float], list[float]]
    at_share: tuple[list[float], list[float]]


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
    figure, axes = panels(len(shown), columns=3, height=1.75)
    seen = evals[start // 2 :]
    for axis, name in zip(axes, shown, strict=True):
        _draw(axis, seen, evals[start:], total, name, own_colour(domains, name))
        share = made.explanation.forecast_share.get(name, math.nan)
        where = f" ({100 * share:.3g}%)" if is_drawable(share) else ""
        axis.set_title(shorten(name, 24) + where, loc="left", parse_math=False)
    axes[0].set_ylabel("nats per token")
    legend(
        figure,
        ("validation loss", {"color": INK, "linewidth": 1.4}),
        ("law, at the shares trained", {"color": INK} | _AS_TRAINED),
        ("law, at the forecast's share", _AT_SHARE),
        ("reference loss", REFERENCE),
        columns=4,
    )
    return finish(figure, f"{prefix}-forecast-curves", "Loss at other shares", _caption(made, seen))


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
    seen: Sequence[EvalPoint],
    since: Sequence[EvalPoint],
    total: int,
    name: str,
    colour: dict[str, Any],
) -> None:
    """Draw one panel.

    Args:
        axis: The panel.
        seen: The evaluations whose losses are shown.
        since: Those from the law's own on.
        total: The last step of training.
        name: The domain.
        colour: Its colour.
    """
    steps, losses = series(seen, lambda point: point.loss, name)
    axis.plot(steps, losses, gid=f"loss-{name}", **colour)
    references = series(seen, lambda point: point.reference_loss, name)
    curves = _curves(since, total, name)
    axis.plot(*curves.as_trained, gid=f"trained-{name}", **colour | _AS_TRAINED)
    axis.plot(*curves.at_share, gid=f"counterfactual-{name}", **_AT_SHARE)
    made = since[0].explanation
    ends = [drawable(value) for value in made.forecast_interval.get(name, ())]
    kept = [*losses, *references[1], curves.as_trained[1][-1], curves.at_share[1][-1]]
    kept = [value for value in kept if is_drawable(value)]
    if kept:
        # Neither an absurd interval nor the steep beginning of a law must flatten the curves.
        margin = 0.08 * (max(kept) - min(kept)) or 0.05
        axis.set_ylim(min(kept) - margin, max(kept) + margin)
    if references[0]:  # the last one stays in force, as far as is known
        references = ([*references[0], total], [*references[1], references[1][-1]])
    axis.plot(*references, gid=f"reference-{name}", **REFERENCE)
    if len(ends) == 2:
        axis.plot([total, total], ends, gid=f"interval-{name}", marker="_", **_INTERVAL)


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
