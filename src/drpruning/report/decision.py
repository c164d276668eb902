"""Tables about the decisions of a phase: the last one by domain, and where there was none."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drpruning.report.figure_parts import finite, radius, radius_is_smaller
from drpruning.report.formats import (
    UNKNOWN,
    consecutive,
    decimals,
    factor,
    loss_text,
    percentage,
    signed,
)
from drpruning.runs.counterfactuals import churns, mean
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord
from drpruning.runs.reference_origin import basis_text, is_combined
from drpruning.scheduling import Explanation

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_MOST_RANGES = 4
_REASONS: tuple[tuple[str, Callable[[Explanation], Mapping[str, str]]], ...] = (
    ("Ratio not updated", lambda explanation: explanation.unusable),
    ("No forecast", lambda explanation: explanation.no_forecast),
    ("Forecast not used", lambda explanation: explanation.refused),
)


@dataclass(frozen=True, kw_only=True)
class SkippedUpdates:
    """Updates that were skipped for one reason over a phase.

    Attributes:
        what: The ratio, or a forecast.
        why: The reason; where it comes with numbers that differ, the last one.
        where: Domains and steps.
    """

    what: str
    why: str
    where: str


@dataclass
class _Group:
    """What was skipped for one reason; reasons that differ in their numbers alone are one."""

    reasons: set[str] = field(default_factory=set)
    last: str = ""
    evaluations: dict[str, list[int]] = field(default_factory=dict)


def skipped_updates(phase: PhaseRecord, domains: Sequence[str]) -> list[SkippedUpdates]:
    """At which evaluations ratio and forecasts were not updated, a line for each reason.

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
    names = _steered(phase, domains)
    steps = [point.step for point in phase.evals]
    return [
        SkippedUpdates(
            what=what,
            why=group.last if len(group.reasons) > 1 else next(iter(group.reasons)),
            where=_where(group.evaluations, names, steps),
        )
        for (what, _), group in sorted(groups.items(), key=lambda item: kinds.index(item[0][0]))
    ]


def _steered(phase: PhaseRecord, domains: Sequence[str]) -> list[str]:
    """The domains of a phase that are trained on, in the order of the page."""
    present = {name for point in phase.evals for name in point.ratio or point.loss}
    return [name for name in domains if name in present]


def reference_origins(phase: PhaseRecord, domains: Sequence[str]) -> dict[str, str]:
    """What losses were compared with over a phase -> for which domains and when.

    Args:
        phase: Its records.
        domains: Domains in the order of the page.
    """
    found: dict[str, dict[str, list[int]]] = {}
    texts: dict[str, set[str]] = {}
    for index, point in enumerate(phase.evals):
        for name in point.explanation.reference_origin:
            # The share that forecasts are for may differ between domains and evaluations.
            kind = basis_text(point, name, with_share=False)
            found.setdefault(kind, {}).setdefault(name, []).append(index)
            texts.setdefault(kind, set()).add(basis_text(point, name))
    names, steps = _steered(phase, domains), [point.step for point in phase.evals]
    return {
        texts[kind].pop() if len(texts[kind]) == 1 else kind: _where(evaluations, names, steps)
        for kind, evaluations in found.items()
    }


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


def listed(found: Sequence[str], names: Sequence[str]) -> str:
    """These domains in the order of the names, or that they are all of them."""
    if len(names) > 2 and set(found) == set(names):
        return f"all {len(names)} domains"
    return ", ".join(sorted(found, key=lambda name: [*names, name].index(name)))


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
        rows: Domain to its cells, one for each column.
        distance: How far the ratio is from the reference ratio, against the limit; may be empty.
        combined: Whether the excess of a domain goes by its reference loss and by its forecast.
    """

    step: int
    columns: list[str]
    rows: dict[str, list[Cell]]
    distance: str
    combined: bool


def last_decision(phase: PhaseRecord, domains: Sequence[str]) -> LastDecision | None:
    """The last decision by domain; None where its policy goes by neither references nor a limit.

    Args:
        phase: Its records.
        domains: Domains in the order of the page.
    """
    if not phase.evals:
        return None
    point = phase.evals[-1]
    if not (finite(point.excess) or point.explanation.has_limit):
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
        distance=distance_text(point.explanation),
        combined=any(is_combined(point, name) for name in names),
    )


def distance_text(explanation: Explanation) -> str:
    """How far the ratio is from the reference ratio and how far it may be; empty if unlimited."""
    if not explanation.has_limit:
        return ""
    notes = ["limit reached"] if explanation.limit_reached else []
    notes += [f"rho {explanation.rho:.3g}"] if radius_is_smaller(explanation) else []
    note = f" ({', '.join(notes)})" if notes else ""
    return f"{explanation.divergence:.3g} of {radius(explanation):.3g}{note}"


def decision_counts(phase: PhaseRecord) -> dict[str, str]:
    """What happened at how many evaluations, and how much the ratio moved at one.

    Returns:
        What happened -> how often; empty where the ratio never moved.
    """
    churn = mean(churns(phase.evals))
    moved = {"mean churn of the ratio": f"{churn:.3f}"} if churn > 0 else {}
    return _limited_counts(phase) | moved


def _limited_counts(phase: PhaseRecord) -> dict[str, str]:
    """The counts for a policy that limits the distance of the ratio; else nothing."""
    limited = [point.explanation for point in phase.evals if point.explanation.has_limit]
    if not limited:
        return {}
    updated = [explanation for explanation in limited if explanation.ratio_updated is not False]
    moved = [p.step for p in phase.evals if p.explanation.reference_ratio_updated]
    at_floor = Counter(name for e in limited for name, reached in e.at_floor.items() if reached)
    return {
        "evaluations": f"{len(limited):,}",
        "ratio updated": f"{len(updated):,}",
        "limit reached": f"{sum(e.limit_reached for e in updated):,}",
        "limit below rho": f"{sum(map(radius_is_smaller, limited)):,}",
        "reference ratio moved": f"{len(moved):,}" + (f", from step {moved[0]:,}" if moved else ""),
        "share at its floor": ", ".join(f"{n} {times:,}" for n, times in at_floor.most_common())
        or "0",
    }


def _reference_ratio(evals: Sequence[EvalPoint]) -> Mapping[str, float]:
    """The reference ratio around which the last ratio was chosen.

    The log holds the one after the update; where it moved, that was the one before.
    """
    last = evals[-1]
    if not last.explanation.has_limit:
        return {}
    if not last.explanation.reference_ratio_updated or len(evals) < 2:
        return last.reference_ratio
    before = evals[-2].reference_ratio
    return before if before.keys() == last.reference_ratio.keys() else {}


def _columns(
    point: EvalPoint, reference_ratio: Mapping[str, float]
) -> dict[str, Callable[[str], Cell]]:
    """What each column says of a domain."""
    why = point.explanation
    averaged = any(abs(loss - point.loss.get(n, loss)) > 1e-12 for n, loss in why.loss.items())

    def steps_worth(value: float) -> str:
        return UNKNOWN if math.isnan(value) else decimals(value, 1)

    def number(values: Mapping[str, float], show: Callable[[float], str]) -> Callable[[str], Cell]:
        return lambda name: Cell(text=show(values.get(name, math.nan)))

    def forecast(name: str) -> Cell:
        low, high = why.forecast_interval.get(name, (math.nan, math.nan))
        known = not (math.isnan(low) or math.isnan(high))
        note = f"{loss_text(low)}–{loss_text(high)}" if known else ""
        return Cell(text=loss_text(point.forecast.get(name, math.nan)), note=note)

    def reference_loss(name: str) -> Cell:
        text = loss_text(point.reference_loss.get(name, math.nan))
        return Cell(text=text, note=why.reference_origin.get(name, ""))

    def quality(name: str) -> Cell:
        value = why.forecast_quality.get(name, math.nan)
        text = UNKNOWN if math.isnan(value) else f"{value:.2f}"
        return Cell(text=text, mark="not used" if name in why.refused else "")

    def share(name: str) -> Cell:
        value, centre = point.ratio.get(name, math.nan), reference_ratio.get(name, math.nan)
        note = factor(value / centre) if centre > 0 else ""
        return Cell(text=percentage(value), note=note)

    def floor(name: str) -> Cell:
        text = percentage(why.floor.get(name, math.nan))
        return Cell(text=text, mark="reached" if why.at_floor.get(name, False) else "")

    return {
        "loss": number(point.loss, loss_text),
        "loss, averaged": number(why.loss if averaged else {}, loss_text),
        "data, steps' worth": number(point.data, steps_worth),
        "forecast (90% interval)" if why.forecast_interval else "forecast": forecast,
        "quality": quality,
        "fitted from step": number(
            why.forecast_since, lambda v: f"{v:,.0f}" if math.isfinite(v) else UNKNOWN
        ),
        "reference loss": reference_loss,
        "excess": number(point.excess, signed),
        "reference share": number(reference_ratio, percentage),
        "ratio": share,
        "floor": floor,
    }
