"""Shares and reference losses of a replay over its evaluations, for tables and figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpruning.runs.counterfactuals import ForecastCheck, mean

CAVEAT = (
    "Losses and data are those of the run as it was: a replay shows what the policy would have "
    "decided at each evaluation given them, not what training under it would have given."
)

CHECKED = (
    "Forecasts less the losses at the end. A forecast for a share is read off at the data that the "
    "domain really had in the end, so that only its law is judged; in brackets: not used."
)

_ROUNDING = 1e-9
"""Shares closer than this count as equal."""


@dataclass(frozen=True, kw_only=True)
class ReplayRow:
    """One domain over a phase; shares, NaN where not known.

    Attributes:
        domain: Its name.
        initial: Share at the start of the run.
        used_end: Share after the last evaluation, as used.
        replayed_end: The same, replayed.
        used_mean: Mean over the steps of training, as used.
        replayed_mean: The same, replayed.
        difference: Replayed less used where the two are farthest apart.
        step: The step of that evaluation.
    """

    domain: str
    initial: float
    used_end: float
    replayed_end: float
    used_mean: float
    replayed_mean: float
    difference: float
    step: int


@dataclass(frozen=True, kw_only=True)
class ReplayCurves:
    """One phase: the numbers of each domain at each of its m evaluations; NaN where not known.

    Attributes:
        phase: Its name.
        steps: Steps of the evaluations [m].
        last_step: The last step that there is a record of.
        initial: Share of each domain at the start of the run; its order is that of the page.
        identical: Whether used and replayed shares are the same to the bit.
        loss: Validation losses in nats [m] per domain.
        used: Shares that were used from each evaluation on [m] per domain.
        replayed: Shares that the replayed policy gives [m] per domain.
        used_reference: Reference losses of the run [m] per domain.
        replayed_reference: Those of the replay [m] per domain.
        bases: Domains by what their loss is compared with at the last evaluation of the replay, in
            words; empty for policies without reference losses.
        used_churn: How much of the ratio each update moved, as used [m].
        replayed_churn: The same, replayed [m].
        used_checks: The run's forecasts against its losses at the end; empty before its end.
        replayed_checks: Those of the replay.
    """

    phase: str
    steps: list[int]
    last_step: int
    initial: dict[str, float]
    identical: bool
    loss: dict[str, list[float]]
    used: dict[str, list[float]]
    replayed: dict[str, list[float]]
    used_reference: dict[str, list[float]]
    replayed_reference: dict[str, list[float]]
    bases: dict[str, list[str]]
    used_churn: list[float]
    replayed_churn: list[float]
    used_checks: list[ForecastCheck]
    replayed_checks: list[ForecastCheck]

    def rows(self) -> list[ReplayRow]:
        """A summary of every domain."""
        return [self._row(domain) for domain in self.initial]

    def churn_text(self) -> str:
        """In one sentence, how much of the ratio an update moves; empty where not known."""
        used, replayed = mean(self.used_churn), mean(self.replayed_churn)
        if math.isnan(replayed):
            return ""
        own = "" if self.identical or math.isnan(used) else f", {used:.3f} in the run"
        return f"Churn (sum of all |new - old| shares at an update, mean): {replayed:.3f}{own}."

    def bases_text(self) -> str:
        """In one sentence, what the last losses are compared with; empty where with nothing."""
        if not self.bases:
            return ""
        parts = [f"{text} ({', '.join(names)})" for text, names in self.bases.items()]
        if len(parts) == 1:
            parts = list(self.bases)
        return f"Reference losses at the end: {'; '.join(parts)}."

    def verdict(self) -> str:
        """In one sentence, how far the two ratios are apart."""
        count = len(self.steps)
        at = f"all {count} evaluations" if count > 1 else "the only evaluation"
        if self.identical:
            return f"The replayed ratio is identical to the run's at {at}."
        row = max(self.rows(), key=lambda row: _size(row.difference))
        if math.isnan(row.difference):
            return "The log does not say which ratio was used."
        if abs(row.difference) <= _ROUNDING:
            return f"The replayed ratio is that of the run up to rounding at {at}."
        return (
            f"The ratios differ from step {self._first_difference():,} on, by at most "
            f"{100 * abs(row.difference):.2f} percentage points ({row.domain}, step {row.step:,})."
        )

    def _first_difference(self) -> int:
        """Step of the first evaluation at which the two ratios are apart; they must be at one."""
        return next(
            step
            for index, step in enumerate(self.steps)
            for name in self.initial
            if abs(self.replayed[name][index] - self.used[name][index]) > _ROUNDING
        )

    def _row(self, domain: str) -> ReplayRow:
        used, replayed = self.used[domain], self.replayed[domain]
        apart = [new - old for old, new in zip(used, replayed, strict=True)]
        at = max(range(len(apart)), key=lambda index: _size(apart[index]))
        return ReplayRow(
            domain=domain,
            initial=self.initial[domain],
            used_end=used[-1],
            replayed_end=replayed[-1],
            used_mean=self._mean(used),
            replayed_mean=self._mean(replayed),
            difference=apart[at],
            step=self.steps[at],
        )

    def _mean(self, shares: Sequence[float]) -> float:
        """Mean over the steps of training; a share holds from its evaluation to the next one."""
        ends = [*self.steps[1:], self.last_step]
        lengths = [end - start for start, end in zip(self.steps, ends, strict=True)]
        if not sum(lengths):
            return shares[-1]
        held = [share * n for share, n in zip(shares, lengths, strict=True) if n]
        return sum(held) / sum(lengths)


def _size(difference: float) -> float:
    """How large a difference is; one that is not known is the smallest."""
    return -1.0 if math.isnan(difference) else abs(difference)
