"""What was held back over a phase, the ratio or a forecast, and why."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drpruning.report.drawing import signed
from drpruning.report.figures import finite
from drpruning.report.formats import UNKNOWN, consecutive, factor, loss_text, percentage
from drpruning.runs.records import EvalPoint, Explanation, PhaseRecord

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_MOST_RANGES = 4
_REASONS: tuple[tuple[str, Callable[[Explanation], Mapping[str, str]]], ...] = (
    ("Ratio not updated", lambda said: said.unusable),
    ("No forecast", lambda said: said.no_forecast),
    ("Forecast not used", lambda said: said.refused),
)


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """What was held back for one reason over a phase.

    Attributes:
        what: The ratio, or a forecast.
        why: The reason; where it comes with numbers that differ, as it was said last.
        where: Domains and steps.
    """

    what: str
    why: str
    where: str


@dataclass
class _Group:
    """All that was held back for one reason, reasons alike but for their numbers being one."""

    reasons: set[str] = field(default_factory=set)
    last: str = ""
    evaluations: dict[str, list[int]] = field(default_factory=dict)


def skipped_updates(phase: PhaseRecord, domains: Sequence[str]) -> list[HeldBack]:
    """At which evaluations ratio and forecasts were held back, a line for each reason.

    Args:
        phase: Its records.
        domains: Domains in the order of the page.
    """
    groups: dict[tuple[str, str], _Group] = {}
    for index, point in enumerate(phase.evals):
        for what, pick in _REASONS:
            for name, reason in sorted(pick(point.explanation).items()):
                group = groups.setdefault((what, _NUMBER.sub("#", reason)), _Group())
                group.reasons.add(reason)
                group.last = f"{reason} ({name}, step {point.step:,})"
                group.evaluations.setdefault(name, []).append(index)
    kinds = [what for what, _ in _REASONS]
    present = {name for point in phase.evals for name in (*point.loss, *point.ratio)}
    names = [name for name in domains if name in present]
    steps = [point.step for point in phase.evals]
    return [
        HeldBack(
            what=what,
            why=group.last if len(group.reasons) > 1 else next(iter(group.reasons)),
            where=_where(group.evaluations, names, steps),
        )
        for (what, _), group in sorted(groups.items(), key=lambda item: kinds.index(item[0][0]))
    ]


def skipped_updates_note(phase: PhaseRecord) -> str:
    """What became of the domains for which something was held back."""
    told = [
        math.isfinite(point.reference_loss.get(name, math.nan))
        for point in phase.evals
        for name in point.explanation.refused
    ]
    why = "since shares are relative"
    said = [
        f"A domain without a usable loss or reference loss keeps the whole ratio as it was, {why}."
    ]
    if any(told) or any(point.explanation.no_forecast for point in phase.evals):
        said.append("One without a usable forecast keeps the reference loss that it has.")
    if any(told):
        said.append(
            "Where it had none, it goes by the smallest loss seen of a model of final size until a "
            "forecast is used."
        )
    if not all(told):
        said.append(
            "A forecast that is not used leaves a domain without a reference loss as long as no "
            "model of final size was evaluated."
        )
    return " ".join(said)


def _where(
    evaluations: Mapping[str, Sequence[int]], names: Sequence[str], steps: Sequence[int]
) -> str:
    """Domains with the steps of these evaluations, domains with the same ones together."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, indices in evaluations.items():
        alike.setdefault(tuple(indices), []).append(name)
    return "; ".join(
        f"{listed(found, names)} at {steps_text(indices, steps)}"
        for indices, found in sorted(alike.items(), key=lambda item: item[0][0])
    )


def steps_text(indices: Sequence[int], steps: Sequence[int]) -> str:
    """The steps of these evaluations, consecutive ones joined, many scattered ones only counted."""
    runs = consecutive(indices)
    first, last = steps[indices[0]], steps[indices[-1]]
    if len(runs) > _MOST_RANGES:
        return f"{len(indices)} evaluations from step {first:,} to {last:,}"
    parts = [
        f"{steps[run[0]]:,}" + (f"–{steps[run[-1]]:,}" if len(run) > 1 else "") for run in runs
    ]
    return f"step{'s' if len(indices) > 1 else ''} {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the table, a word before it that makes it stand out, and a note after it."""

    text: str
    mark: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LastDecision:
    """The last decision of a phase.

    Attributes:
        step: The evaluation at which it was made.
        columns: Heads of the table after that of the domain.
        rows: Domain to its cells, one a column.
        caption: What the columns mean.
        remarks: Sentences on the ball, the floors, the forecasts and on what was held back.
    """

    step: int
    columns: list[str]
    rows: dict[str, list[Cell]]
    caption: str
    remarks: list[str]


def last_decision(phase: PhaseRecord, domains: Sequence[str]) -> LastDecision | None:
    """Explain the last decision; None where its policy went by neither excess losses nor a ball.

    Args:
        phase: Its records.
        domains: Domains in the order of the page.
    """
    if not phase.evals:
        return None
    point = phase.evals[-1]
    if not (finite(point.excess) or point.explanation.has_ball):
        return None
    names = [name for name in domains if name in point.loss or name in point.ratio]
    made = {
        head: [cell(name) for name in names]
        for head, cell in _columns(point, _reference_ratio(phase.evals)).items()
    }
    shown = {
        head: cells for head, cells in made.items() if any(cell.text != UNKNOWN for cell in cells)
    }
    return LastDecision(
        step=point.step,
        columns=list(shown),
        rows={name: [cells[index] for cells in shown.values()] for index, name in enumerate(names)},
        caption=_caption(shown),
        remarks=[sentence for sentence in _remarks(point, names) if sentence],
    )


def _reference_ratio(evals: Sequence[EvalPoint]) -> dict[str, float]:
    """The reference ratio around which the last ratio was chosen.

    The log holds the one after the update; where it moved, that was the one before.
    """
    last = evals[-1]
    if not last.explanation.has_ball:
        return {}
    if not last.explanation.reference_ratio_updated or len(evals) < 2:
        return last.reference_ratio
    before = evals[-2].reference_ratio
    return before if before.keys() == last.reference_ratio.keys() else {}


def _columns(
    point: EvalPoint, reference_ratio: Mapping[str, float]
) -> dict[str, Callable[[str], Cell]]:
    """What each column says of a domain."""
    said = point.explanation
    averaged = any(abs(loss - point.loss.get(n, loss)) > 1e-12 for n, loss in said.loss.items())

    def number(values: Mapping[str, float], show: Callable[[float], str]) -> Callable[[str], Cell]:
        return lambda name: Cell(text=show(values.get(name, math.nan)))

    def forecast(name: str) -> Cell:
        low, high = said.forecast_interval.get(name, (math.nan, math.nan))
        note = "" if math.isnan(low) or math.isnan(high) else f"{low:.3f}–{high:.3f}"
        return Cell(text=loss_text(point.forecast.get(name, math.nan)), note=note)

    def quality(name: str) -> Cell:
        value = said.forecast_quality.get(name, math.nan)
        text = UNKNOWN if math.isnan(value) else f"{value:.2f}"
        return Cell(text=text, mark="not used" if name in said.refused else "")

    def share(name: str) -> Cell:
        value, centre = point.ratio.get(name, math.nan), reference_ratio.get(name, math.nan)
        note = factor(value / centre) if centre > 0 else ""
        return Cell(text=percentage(value), note=note)

    def floor(name: str) -> Cell:
        text = percentage(said.floor.get(name, math.nan))
        return Cell(text=text, mark="binds" if said.at_floor.get(name, False) else "")

    return {
        "loss": number(point.loss, loss_text),
        "loss, averaged": number(said.loss if averaged else {}, loss_text),
        "forecast (90% interval)" if said.forecast_interval else "forecast": forecast,
        "quality": quality,
        "reference loss": number(point.reference_loss, loss_text),
        "excess": number(point.excess, lambda v: UNKNOWN if math.isnan(v) else signed(v)),
        "reference share": number(reference_ratio, percentage),
        "ratio": share,
        "floor": floor,
    }


def _caption(shown: Mapping[str, object]) -> str:
    """What the columns mean."""
    said = ["Losses in nats a token."]
    if any(head.startswith("forecast") for head in shown):
        said.append("The forecast is of the loss at the end of training.")
    if "forecast (90% interval)" in shown:
        said.append(
            "It counts for at most the smallest loss seen of a model of final size, so it can lie "
            "below its interval."
        )
    if "quality" in shown:
        said.append("Quality runs from 0 (says nothing) to 1.")
    if "excess" in shown:
        averaged = "averaged " if "loss, averaged" in shown else ""
        said.append(f"Excess is {averaged}loss minus reference loss.")
    if "reference share" in shown:
        said.append(
            "The ratio lies in a ball around the reference shares as they were before this "
            "decision; × is the factor over them."
        )
    return " ".join(said)


def _remarks(point: EvalPoint, names: Sequence[str]) -> list[str]:
    said = point.explanation
    since = {name: f"step {step:,.0f}" for name, step in _known(said.forecast_since, names)}
    return [
        _ball_sentence(point),
        _floor_sentence(point, names),
        _reasons("The ratio was not updated", said.unusable, names)
        or ("The ratio was not updated." if said.ratio_updated is False else ""),
        _reasons("No forecast", said.no_forecast, names),
        _reasons("Forecast not used", said.refused, names),
        _reasons(
            "Forecast without earlier points, off the curve of the later ones; from",
            since,
            names,
        ),
    ]


def _ball_sentence(point: EvalPoint) -> str:
    """How far the ratio uses the ball, and what that means; empty where there is none."""
    said = point.explanation
    if not said.has_ball:
        return ""
    free = [name for name in point.ratio if not said.at_floor.get(name, False)]
    if said.ratio_updated is False:
        meaning = "; it is that of the evaluation before"
    elif said.ball_binds:
        meaning = ": the ball binds"
    elif said.divergence < 1e-12:
        meaning = ": it is the reference ratio"
    elif said.at_floor and free:
        meaning = f": all mass that the floors leave free is on {_joined(free)}"
    else:
        meaning = ""
    return (
        f"The ratio uses {said.divergence:.3g} of the {said.rho:g} that the ball allows{meaning}."
    )


def _floor_sentence(point: EvalPoint, names: Sequence[str]) -> str:
    bound = sum(point.explanation.at_floor.get(name, False) for name in names)
    if not bound:
        return ""
    return f"The floor binds for {bound} of {len(names)} domains."


def _reasons(what: str, reasons: Mapping[str, str], names: Sequence[str]) -> str:
    """What was held back, each reason with its domains."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    parts = [f"{reason} ({listed(found, names)})" for reason, found in by_reason.items()]
    return f"{what}: {'; '.join(parts)}." if parts else ""


def listed(found: Sequence[str], names: Sequence[str]) -> str:
    """These domains in the order of the names, or that they are all of them."""
    if len(names) > 2 and set(found) == set(names):
        return f"all {len(names)} domains"
    return ", ".join(sorted(found, key=lambda name: [*names, name].index(name)))


def _known(values: Mapping[str, float], names: Sequence[str]) -> list[tuple[str, float]]:
    found = [(name, values.get(name, math.nan)) for name in names]
    return [(name, value) for name, value in found if math.isfinite(value)]


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
