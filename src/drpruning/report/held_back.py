"""What was held back over a phase, the ratio or a forecast, and why."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drpruning.report.decision import listed
from drpruning.report.formats import consecutive
from drpruning.report.records import Explanation, PhaseRecord

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


def held_back(phase: PhaseRecord, domains: Sequence[str]) -> list[HeldBack]:
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


def what_follows(phase: PhaseRecord) -> str:
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
