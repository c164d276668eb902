"""What a policy decides at an evaluation, and why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from drpruning.common.unknown import Unknown

Ratio = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a policy decided as it did; mappings go from domain name to its value.

    A field that does not apply to the policy is unknown: a mapping is `Unknown`, a number NaN and
    an answer None. `common.unknown.record_fields` leaves such a field out.

    Attributes:
        ratio_updated: Whether the ratio was computed anew.
        unusable: If it was not: what each of these domains lacks.
        churn: How much of the ratio this update moved: the sum of all `|new - old|` shares, from 0
            to 2.
        loss: The losses that were used, in nats; moving averages where the policy averages.
        reference_origin: Where the reference loss in force comes from: `given` (by the user),
            `source` (the source model's own loss), `forecast`, or `smallest loss` (the smallest one
            seen, which stands in while no forecast can be trusted). Domains without a reference
            loss are left out.
        forecast_interval: 90% interval (low, high) of the loss at the end of training.
        forecast_quality: How good each forecast is, from 0 (says nothing) to 1.
        forecast_since: First step used, where earlier losses do not lie on one curve with the rest.
        no_forecast: Why there is no forecast.
        refused: Why a forecast was not used.
        forecast_law: The curve `A * (x + offset)**-beta + E` behind a forecast, as the constants
            `A`, `beta`, `E`, `offset` and `transfer`. Here x is the domain's own data plus
            `transfer` times all other data, in steps' worth (see `Decision.data`). Where the number
            of parameters changes, A is that at the final number. Unknown where the curve is fitted
            to steps instead.
        forecast_share: The share of the remaining training that the domain would have to get to end
            at its forecast. Unknown where the curve is fitted to steps.
        reference_ratio_updated: Whether the reference ratio moved after the decision.
        rho: How far the ratio may be from the reference ratio at most (chi-square divergence).
        radius: How far it may be at this update: less than `rho` where the scores give less
            evidence; `rho` where the ratio was not computed anew.
        divergence: How far it is. More than `radius` only where the floors require it.
        floor: Smallest share allowed.
        at_floor: Whether the share is no larger than that.
    """

    ratio_updated: bool | None = None
    unusable: Mapping[str, str] = field(default_factory=Unknown)
    churn: float = math.nan
    loss: Mapping[str, float] = field(default_factory=Unknown)
    reference_origin: Mapping[str, str] = field(default_factory=Unknown)
    forecast_interval: Mapping[str, tuple[float, float]] = field(default_factory=Unknown)
    forecast_quality: Mapping[str, float] = field(default_factory=Unknown)
    forecast_since: Mapping[str, float] = field(default_factory=Unknown)
    no_forecast: Mapping[str, str] = field(default_factory=Unknown)
    refused: Mapping[str, str] = field(default_factory=Unknown)
    forecast_law: Mapping[str, Mapping[str, float]] = field(default_factory=Unknown)
    forecast_share: Mapping[str, float] = field(default_factory=Unknown)
    reference_ratio_updated: bool | None = None
    rho: float = math.nan
    radius: float = math.nan
    divergence: float = math.nan
    floor: Mapping[str, float] = field(default_factory=Unknown)
    at_floor: Mapping[str, bool] = field(default_factory=Unknown)

    @property
    def has_limit(self) -> bool:
        """Whether the distance of the ratio from a reference ratio was limited."""
        return math.isfinite(self.rho) and math.isfinite(self.divergence)

    @property
    def limit_reached(self) -> bool:
        """Whether the ratio is as far from the reference ratio as it may be, up to rounding."""
        limit = self.rho if math.isnan(self.radius) else self.radius  # older logs have no radius
        return self.has_limit and self.divergence >= limit * (1 - 1e-6)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy decided at one evaluation; mappings go from domain name to number.

    Attributes:
        ratio: Share of each domain in the training that follows; sums to 1.
        reference_ratio: Reference ratio after this update; the initial ratio where a policy has
            no other.
        reference_loss: Reference losses used, in nats, for the domains that have one; None if
            none has.
        forecast: Losses at the end of training as forecast at this evaluation, for the domains
            that have a forecast; None if none was made.
        excess: Loss less reference loss; where forecasts count beside it, the geometric mean of
            that (weight 3/4) and of loss less forecast (1/4), which counts no further than the
            curve behind the forecast still falls. None where it is not known for any domain.
        data: How much of the phase's training each domain has had up to this evaluation, in steps'
            worth: its share times the steps under it, added up. Times the tokens of a step these
            are tokens; the sum over the domains is the number of steps done.
        explanation: Why the ratio is what it is.
    """

    ratio: Ratio
    reference_ratio: Ratio
    reference_loss: Ratio | None
    forecast: Ratio | None
    excess: Ratio | None
    data: Ratio
    explanation: Explanation
