"""What the laws behind a run's forecasts say of other data, and how far they were from the truth.

A law gives the loss of a domain from its own data, so it can be read off at data that the domain
never had (a share that it was not given) and, once training has ended, at the data that it had.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord
from drpruning.scheduling import Decision

Numbers = Mapping[str, float]

CHECKED_AT = (0.2, 0.4, 0.6, 0.8)
"""Parts of training after which forecasts are compared with the losses at the end."""


def loss_at(law: Numbers, own: float, other: float) -> float:
    """The loss in nats that a law gives, `A * (x + offset)**-beta + E`.

    Args:
        law: `A`, `beta`, `E`, `offset` and `transfer` (see `Explanation.forecast_law`).
        own: The domain's data, in steps' worth.
        other: The data of all other domains together.

    Returns:
        NaN where a constant is not known, or where the law has no finite value.
    """
    factor, beta, floor, offset, transfer = (
        law.get(name, math.nan) for name in ("A", "beta", "E", "offset", "transfer")
    )
    amount = own + transfer * other + offset
    if not amount > 0:
        return math.nan
    try:
        loss = factor * amount**-beta + floor
    except OverflowError:
        return math.nan
    return loss if math.isfinite(loss) else math.nan


def split_data(data: Numbers, domain: str) -> tuple[float, float]:
    """The data of a domain, and those of all others together; NaN where they are not known."""
    if domain not in data:
        return math.nan, math.nan
    return data[domain], sum(value for name, value in data.items() if name != domain)


@dataclass(frozen=True, kw_only=True)
class ForecastPoint:
    """What one evaluation knew and forecast; mappings go from domain to number.

    Attributes:
        step: Optimizer steps done.
        loss: Validation losses in nats.
        data: Steps' worth of each domain so far.
        forecast: Losses at the end of training as forecast.
        law: The constants behind each forecast; empty where it was fitted to steps.
        refused: Domains whose forecast was not used.
    """

    step: int
    loss: Numbers
    data: Numbers
    forecast: Numbers
    law: Mapping[str, Numbers]
    refused: frozenset[str]

    @classmethod
    def logged(cls, point: EvalPoint) -> "ForecastPoint":
        """What a run has logged."""
        return cls(
            step=point.step,
            loss=point.loss,
            data=point.data,
            forecast=point.forecast,
            law=point.explanation.forecast_law,
            refused=frozenset(point.explanation.refused),
        )

    @classmethod
    def decided(cls, point: EvalPoint, decision: Decision) -> "ForecastPoint":
        """What another policy made of the losses that a run has logged."""
        return cls(
            step=point.step,
            loss=point.loss,
            data=decision.data,
            forecast=decision.forecast or {},
            law=decision.explanation.forecast_law,
            refused=frozenset(decision.explanation.refused),
        )

    def predicted(self, domain: str, end: "ForecastPoint", *, as_planned: bool) -> float:
        """The loss that this evaluation would have predicted for the end, in nats.

        With a law that is its value at the data that the domain really had in the end, so that only
        the law is judged and not the share that the forecast assumed. A forecast over steps needs
        no more than the end at the planned step.
        """
        if domain in self.law:
            return loss_at(self.law[domain], *split_data(end.data, domain))
        return self.forecast.get(domain, math.nan) if as_planned else math.nan


@dataclass(frozen=True, kw_only=True)
class ForecastCheck:
    """The forecasts of one evaluation against the losses at the end.

    Attributes:
        step: Of the evaluation.
        done: The part of training after which it was made.
        error: Predicted less final loss in nats, of every domain with a forecast.
        refused: Domains whose forecast was not used.
    """

    step: int
    done: float
    error: dict[str, float]
    refused: frozenset[str]

    def error_of(self, domain: str) -> float:
        """The error for a domain; NaN where it had no forecast."""
        return self.error.get(domain, math.nan)

    @property
    def mean_error(self) -> float:
        """Mean size of the errors of the forecasts that were used; NaN where there are none."""
        used = [abs(e) for name, e in self.error.items() if name not in self.refused]
        return sum(used) / len(used) if used else math.nan


def check_forecasts(
    points: Sequence[ForecastPoint], total_steps: int | None
) -> list[ForecastCheck]:
    """Compare the forecasts made at 20, 40, 60 and 80% of training with the losses at the end.

    Args:
        points: All evaluations of a phase that has ended, in the order of steps.
        total_steps: The steps that the phase was to have.

    Returns:
        Of each part of training the first evaluation from there on, those with forecasts, once.
    """
    if not points:
        return []
    end = points[-1]
    as_planned = total_steps is None or end.step == total_steps
    checks: dict[int, ForecastCheck] = {}
    for part in CHECKED_AT:
        point = next((p for p in points[:-1] if p.step >= part * end.step), None)
        if point is None or point.step in checks:
            continue
        errors = {
            name: point.predicted(name, end, as_planned=as_planned) - loss
            for name, loss in end.loss.items()
        }
        if known := {name: error for name, error in errors.items() if math.isfinite(error)}:
            checks[point.step] = ForecastCheck(
                step=point.step, done=part, error=known, refused=point.refused
            )
    return list(checks.values())


def phase_checks(phase: PhaseRecord) -> list[ForecastCheck]:
    """The same for the forecasts that a run has logged; empty where the phase has not ended."""
    if phase.end is None:
        return []
    return check_forecasts(list(map(ForecastPoint.logged, phase.evals)), phase.total_steps)


def trained_shares(
    before: EvalPoint | None, point: EvalPoint, domains: Sequence[str]
) -> dict[str, float] | None:
    """The share of each domain in the training between two evaluations of a run.

    The run's policy added them up to the `data` of the log, so that of the ratio in force and the
    realised shares those are taken which give these data to the bit: under its own settings a run
    must decide the same again. Logs without `data` are of versions that went by the ratio.

    Args:
        before: The evaluation before; None for the first one of a phase.
        point: The one after.
        domains: Those that are trained on.

    Returns:
        None where there was no training between them, or the log does not say.
    """
    steps = point.step - (before.step if before else 0)
    if steps <= 0:
        return None
    known: list[Numbers] = [before.ratio if before else {}, point.realised_share]
    known = [shares for shares in known if _are_shares(shares, domains)]
    had = before.data if before else dict.fromkeys(domains, 0.0)
    if all(name in had and name in point.data for name in domains):
        exact = [
            shares
            for shares in known
            if all(had[name] + shares[name] * steps == point.data[name] for name in domains)
        ]
        added = {name: (point.data[name] - had[name]) / steps for name in domains}
        known = [*exact, *([added] if _are_shares(added, domains) else []), *known]
    return {name: known[0][name] for name in domains} if known else None


def _are_shares(shares: Numbers, domains: Sequence[str]) -> bool:
    """Whether these are shares that a policy takes: of every domain, and 1 in all."""
    values = [shares.get(name, math.nan) for name in domains]
    return all(value >= 0 for value in values) and abs(sum(values) - 1) <= 1e-6


def churns(points: Sequence[EvalPoint]) -> list[float]:
    """How much of the ratio each update moved, the sum of all `|new - old|`; NaN if not known.

    Logs of earlier versions do not say it; it then follows from the ratios.
    """
    found = []
    for index, point in enumerate(points):
        churn = point.explanation.churn
        before = points[index - 1].ratio if index else {}
        if math.isnan(churn) and before and before.keys() == point.ratio.keys():
            churn = sum(abs(share - before[name]) for name, share in point.ratio.items())
        found.append(churn)
    return found


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are known; NaN where none is."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def geometric_mean(values: Iterable[float]) -> float:
    """Exponential of the mean logarithm of the values above 0 that are known; NaN without any."""
    return math.exp(mean([math.log(value) for value in values if 0 < value < math.inf]))
