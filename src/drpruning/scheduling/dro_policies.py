"""The policies that solve DRO in a chi-square ball: DRPruning and naive DRO."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.common.policy_settings import DEFAULT_SETTINGS as DEFAULT
from drpruning.common.shares import INITIAL_OR_EQUAL, SMALLEST_REFERENCE, initial_or_equal
from drpruning.common.unknown import Unknown
from drpruning.scheduling.decision import Decision
from drpruning.scheduling.forecast_reference import (
    ForecastAt,
    ForecastReferences,
    ForecastSettings,
    ReferenceRule,
)
from drpruning.scheduling.history import LossHistory
from drpruning.scheduling.policy import Evaluation, ReferencedPolicy
from drpruning.scheduling.reference import GivenLosses
from drpruning.scheduling.worst_case import (
    FloatArray,
    divergence,
    nearest_ratio,
    project_to_bounds,
    worst_case_ratio,
)

NO_REFERENCE_YET = "it has no reference loss yet"
NOTHING_TO_COMPARE = (
    "forecast: 'never' needs reference losses; give reference_loss by domain or 'source', "
    "or leave forecast out"
)

Floor = float | Mapping[str, float] | Literal["initial_or_equal", "smallest_reference"]
Forecasting = Literal["combine", "replace", "never"]
_BEHIND = 0.75
"""Weight of how far a domain is behind against how far it can get, in their geometric mean."""
_CLAIM = 10
"""Most times how far a domain can get that its excess may be: noise always promises a little."""


class _BallPolicy(ReferencedPolicy):
    """Adds the limit on how far the ratio is from the reference ratio, and the floors."""

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None,
        final_params: float | None,
        reference_loss: GivenLosses | None,
        *,
        rho: float,
        floor: Floor,
        relative_floor: float = 0.0,
        tau: float = 0.0,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params, reference_loss)
        if not 0 <= relative_floor <= 1:
            raise BadInput(f"relative_floor must lie between 0 and 1, not {relative_floor}")
        if not 0 <= tau < math.inf:
            raise BadInput(f"tau must be at least 0, not {tau}")
        self.rho = float(rho)
        self.tau = float(tau)
        self.relative_floor = float(relative_floor)
        least = self._named_floor(floor) if isinstance(floor, str) else floor
        self._floor = self._array(least, "floor") if isinstance(least, Mapping) else least
        self._radius = self.rho
        self._check_feasible()

    def _named_floor(self, word: str) -> dict[str, float] | None:
        if word == INITIAL_OR_EQUAL:
            return initial_or_equal(self._named(self._initial_ratio))
        if word != SMALLEST_REFERENCE:
            words = f"{INITIAL_OR_EQUAL!r} or {SMALLEST_REFERENCE!r}"
            raise BadInput(f"floor must be a share, shares by domain, {words}, not {word!r}")
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._check_feasible()

    def continue_from(self, state: Mapping[str, Any]) -> None:
        super().continue_from(state)
        self._check_feasible()

    def _check_feasible(self) -> None:
        if (problem := self._problem_around(self._reference_ratio)) is not None:
            raise BadInput(f"{self.name}: {problem}")

    def _problem_around(self, reference_ratio: FloatArray) -> ValueError | None:
        """Why no ratio satisfies both the floors and `rho` around this reference ratio, if so."""
        equal_scores, floors = np.zeros_like(reference_ratio), self._floors(reference_ratio)
        try:
            worst_case_ratio(equal_scores, reference_ratio, self.rho, floors)
        except ValueError as error:
            return error
        return None

    def _floors(self, reference_ratio: FloatArray) -> FloatArray:
        """The smallest share of each domain around this reference ratio [n]."""
        p = reference_ratio / reference_ratio.sum()  # as the solver has it, to the last bit
        floor = p.min() if self._floor is None else self._floor
        return np.asarray(np.maximum(floor, self.relative_floor * p))

    def _follow(self, losses: FloatArray, unusable: dict[str, str]) -> FloatArray:
        self._radius = self.rho  # where the ratio stays, no scores narrow it
        return super()._follow(losses, unusable)

    def _ratio_from(self, excess: FloatArray) -> FloatArray:
        p, floors = self._reference_ratio, self._floors(self._reference_ratio)
        self._radius = self._evident_radius(excess)
        # Where so small a ball lies below the floors, it is enlarged to the nearest ratio above.
        nearest = divergence(nearest_ratio(p, floors), p)
        return worst_case_ratio(excess, p, max(self._radius, nearest), floors)

    def _evident_radius(self, scores: FloatArray) -> float:
        """How far the scores [n] may move the ratio: `rho`, or less where they differ little.

        The optimum is `q = p * (1 + u * (s - mean))` above the floors, so its divergence is
        `u**2 * Var_p(s) / 2`, and a radius of `Var_p(s) / (2 * tau**2)` is the tilt `u = 1 / tau`.
        Without it the tilt takes whatever fills the ball, and as the solution does not depend on
        the scale of the scores, differences as small as the noise would move the ratio as far as
        large ones.
        """
        if self.tau == 0:
            return self.rho
        p = self._reference_ratio
        with np.errstate(over="ignore"):
            centred = (scores - p @ scores) / self.tau
            return min(self.rho, float(p @ centred**2) / 2)

    def _explain(self) -> dict[str, Any]:
        """How far the ratio is from the reference ratio, and which floors hold it up."""
        floors = self._floors(self._reference_ratio)
        at_floor = self._ratio <= floors * (1 + 1e-9)
        return {
            "rho": self.rho,
            "radius": self._radius,
            "divergence": divergence(self._ratio, self._reference_ratio),
            "floor": self._named(floors),
            "at_floor": self._by_domain(at_floor.tolist()),
        }


class NaiveDRO(_BallPolicy):
    """The worst ratio around a fixed reference ratio, for fixed reference losses.

    Source: Zhou et al., EMNLP 2021; Eq. 5 of DRPruning (arXiv 2411.14055).

    Args:
        initial_ratio: Share of each domain at the start, and the reference ratio.
        total_steps: Not used.
        final_params: Not used.
        rho: Largest chi-square divergence of the ratio from the reference ratio.
        floor: Smallest share, for all domains or by name; by default the smallest reference share.
        reference_loss: Loss that each domain should reach, in nats, or `source` for the source
            model's own at step 0; by default 0, so that the scores are the losses themselves.

    Raises:
        ValueError: A setting is outside its range, or the floors leave nothing within `rho` of the
            reference ratio.
    """

    name = "naive_dro"

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
        *,
        rho: float = 0.1,
        floor: Floor = SMALLEST_REFERENCE,
        reference_loss: GivenLosses | None = None,
    ) -> None:
        if reference_loss is None:
            reference_loss = dict.fromkeys(initial_ratio, 0.0)
        super().__init__(
            initial_ratio, total_steps, final_params, reference_loss, rho=rho, floor=floor
        )


class DRPruning(_BallPolicy):
    """More data for the domains that are furthest behind where they should be (DRO).

    At an evaluation (arXiv 2411.14055, Figure 1) the losses first give the reference losses, these
    the ratio around the reference ratio as it was (Eq. 3 and 5), and then the reference ratio moves
    towards the new ratio (3.3, Eq. 6). The settings decide what the reference loss of a domain is:

    - *Given*: by domain, or the source model's own losses. They stay for the complete phase, and
      `continue_from` hands them over to the next.
    - *Forecast*, where none are given: the loss that the domain would reach by the end of training,
      at most the smallest loss seen of a model of final size, and at least 0.
    - *Both* (`forecast="combine"`): what is given stays, and the excess is a geometric mean of
      two distances, to the reference loss (weight 3/4) and to the forecast (at most what the curve
      behind the forecast still falls, as noise is nothing to win). How far a domain is behind says
      where data are wanted; how far it can still get says where they help. A domain that has
      reached its reference loss, or can get no further, has no claim on data, so that a wrong
      reference loss or a domain of noise cannot take the data of the others. As noise always
      promises a little, the excess is at most 10 times how far the domain can get.
    - *Replaced* (`forecast="replace"`, the paper's): given until the first forecast.

    Before the first forecast the ratio stays where it is if nothing is given.

    The defaults are in `DEFAULT_SETTINGS`, the paper's settings in `PAPER_SETTINGS`.

    Args:
        initial_ratio: Share of each domain at the start, and the first reference ratio.
        total_steps: Length of training, in optimizer steps.
        final_params: Number of parameters at the end, if it changes during training; the updates
            then say how many there are.
        rho: Largest chi-square divergence of the ratio from the reference ratio.
        floor: Smallest share, for all domains or by name; or `initial_or_equal`, the initial or an
            equal share, the smaller of both, scaled down where these are more than 0.6 of the data;
            or `smallest_reference`, the smallest reference share (the paper's).
        relative_floor: Part of its reference share below which no share falls either, in [0, 1];
            0.2 in the released code of the paper.
        tau: Evidence that a move needs, in nats. The ratio goes no further than a divergence of
            `Var(excess) / (2 tau**2)`, the variance taken under the reference ratio, so that
            differences well below `tau` move it little. 0 lets every difference fill the ball.
        reference_loss: Reference loss of each domain, in nats, or `source` for the losses of the
            first update, which must be at step 0, of the model before anything is removed.
        loss_weight: Weight of a new loss in the moving average of losses, in (0, 1]; 1 takes the
            losses as they are.
        forecast: What forecasts do from `forecast_start` on, as above: `combine`, `replace`, or
            `never`, which needs reference losses.
        forecast_at: What a forecast assumes of the rest of training: that every domain gets the
            same share (`equal`) or its share of the reference ratio (`reference`), from a curve
            fitted to the data that the domain itself has had; or that everything continues as it is
            (`present`, the paper's), from a curve fitted to the steps.
        transfer: Part of the data of other domains that counts as the domain's own, in [0, 1];
            without effect where `forecast_at` is `present`.
        forecast_start: Share of training before the first forecast.
        min_quality: Smallest quality (see `LossForecast`) of a forecast that becomes a reference
            loss, in [0, 1]; 0 takes every finite one. One that cannot be trusted leaves the
            reference loss where it was; where there was none, the smallest loss seen stands in.
        reference_rule: Which of the forecasts so far is the reference loss: the smallest
            (`minimum`, the paper's), the smallest but not below the latest forecast's interval
            (`credible`), or the latest (`latest`).
        moving_reference: Whether the reference ratio moves.
        reference_start: Share of training before it first moves.
        delta: How far it moves towards the new ratio each time, in [0, 1].
        bound: It stays within [1/bound, bound] times the initial ratio; at least 1.

    Raises:
        ValueError: A setting is outside its range, or the floors leave nothing within `rho` of the
            reference ratio.
    """

    name = "drpruning"

    def __init__(  # noqa: PLR0913 - each part of the method can be set on its own
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int,
        final_params: float | None = None,
        *,
        rho: float = DEFAULT["rho"],
        floor: Floor = DEFAULT["floor"],
        relative_floor: float = DEFAULT["relative_floor"],
        tau: float = DEFAULT["tau"],
        reference_loss: GivenLosses | None = None,
        loss_weight: float = DEFAULT["loss_weight"],
        forecast: Forecasting = DEFAULT["forecast"],
        forecast_at: ForecastAt = DEFAULT["forecast_at"],
        transfer: float = DEFAULT["transfer"],
        forecast_start: float = DEFAULT["forecast_start"],
        min_quality: float = DEFAULT["min_quality"],
        reference_rule: ReferenceRule = DEFAULT["reference_rule"],
        moving_reference: bool = DEFAULT["moving_reference"],
        reference_start: float = DEFAULT["reference_start"],
        delta: float = DEFAULT["delta"],
        bound: float = DEFAULT["bound"],
    ) -> None:
        super().__init__(
            initial_ratio,
            total_steps,
            final_params,
            reference_loss,
            rho=rho,
            floor=floor,
            relative_floor=relative_floor,
            tau=tau,
        )
        for setting, value in (("reference_start", reference_start), ("delta", delta)):
            if not 0 <= value <= 1:
                raise BadInput(f"{setting} must lie between 0 and 1, not {value}")
        if forecast not in get_args(Forecasting):
            known = ", ".join(get_args(Forecasting))
            raise BadInput(f"forecast must be one of {known}, not {forecast!r}")
        if not 1 <= bound < math.inf:
            raise BadInput(f"bound must be at least 1, not {bound}")
        self.delta = delta
        self.bound = bound
        self.loss_weight = loss_weight
        self._forecast = forecast
        self._forecast_settings = ForecastSettings(
            total_steps=total_steps,
            final_params=final_params,
            start=forecast_start,
            at=forecast_at,
            transfer=transfer,
            min_quality=min_quality,
            rule=reference_rule,
        )
        self._move_from = reference_start * total_steps if moving_reference else math.inf
        self._begin()

    def _begin(self) -> None:
        """Start a loss history, and forecasts from it."""
        self._history = LossHistory(self._domains, self.loss_weight)
        self._reachable: FloatArray | None = None  # to combine with at this update [n]
        self._forecasts = ForecastReferences(self._domains, self._forecast_settings)

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        super().continue_from(state)
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        made = self._by_domain(self._forecasts.made.tolist())
        return super().state_dict() | {"has_forecast": made} | self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        super().load_state_dict(state)
        self._history.load_state_dict(state)
        self._forecasts.made = np.array([state["has_forecast"][d] for d in self._domains])

    def _decide(self, evaluation: Evaluation) -> Decision:
        step, unusable = evaluation.step, evaluation.unusable
        self._take_source(evaluation)
        losses = self._history.record(step, evaluation.losses, evaluation.params, self._data)
        forecast, about_forecasts = self._forecast_now(step, unusable)
        # Figure 1 of the paper: the ratio is the worst case around the reference ratio as it was,
        # and only then does that move (Eq. 6). So the divergence that is explained is the one that
        # `rho` limited, and not that from where the reference ratio goes now.
        excess = self._follow(losses, unusable)
        ball = self._explain()
        moved = not unusable and step >= self._move_from and self._move_reference_ratio()
        return self._decision(
            unusable=unusable,
            reference_ratio=self._reference_ratio,
            reference_loss=self._references.loss,
            forecast=forecast,
            excess=excess,
            loss=self._known(losses) or Unknown(),
            reference_origin=self._origins(),
            **about_forecasts,
            reference_ratio_updated=moved,
            **ball,
        )

    def _forecast_now(
        self, step: int, unusable: dict[str, str]
    ) -> tuple[FloatArray | None, dict[str, Any]]:
        """Forecast where it is time to, and let the forecasts count as the settings say.

        Returns:
            The forecasts [n] or None, and the fields of `Explanation` about them.
        """
        self._reachable = None
        if not (self._forecasting and self._forecast_settings.due(step)):
            return None, {}
        combining = self._combining
        forecast, reachable, about = self._forecasts.update(
            self._history, self._references, self._share_forecast_at(), replace=not combining
        )
        if combining:
            self._reachable = reachable
            return forecast, about
        for name in about["refused"]:
            if not self._references.known[self._domains.index(name)]:
                unusable.setdefault(
                    name, f"{NO_REFERENCE_YET}: no model of final size was evaluated"
                )
        return forecast, about

    @property
    def _forecasting(self) -> bool:
        """Whether forecasts count."""
        return self._forecast != "never"

    @property
    def _combining(self) -> bool:
        """Whether forecasts temper reference losses rather than becoming them."""
        return self._forecast == "combine" and (self._from_source or self._references.fixed)

    def _check(self, evaluation: Evaluation) -> None:
        super()._check(evaluation)
        if not (self._forecasting or self._from_source or self._references.known.any()):
            raise BadInput(NOTHING_TO_COMPARE)

    def _excess(self, losses: FloatArray) -> FloatArray:
        """How far each domain is behind [n], and how much of that it can still make up.

        With reference losses and forecasts it is a geometric mean of the two distances: to the
        reference loss, and to what the domain would reach. So a domain that has reached
        its reference loss, or can get no further, has no claim on data, whatever the other says.
        """
        behind = super()._excess(losses)
        if self._reachable is None or not np.isfinite(self._reachable).any():
            return behind
        behind = np.maximum(behind, 0)
        both = behind**_BEHIND * self._reachable ** (1 - _BEHIND)
        both = np.minimum(both, _CLAIM * self._reachable)
        known = np.isfinite(both)
        # A domain without a forecast is tempered as the others are on average. Like theirs, its
        # excess is 0 at least: below that it would move the mean that all are compared with.
        total = behind[known].sum()
        part = both[known].sum() / total if total > 0 else 1.0
        return np.where(known, both, behind * part)

    def _why_no_reference(self) -> str:
        if self._forecasting and not self._combining:
            return NO_REFERENCE_YET
        return super()._why_no_reference()

    def _share_forecast_at(self) -> FloatArray:
        """The share of each domain in the rest of training that a forecast assumes [n]."""
        if self._forecast_settings.at == "reference":
            return self._reference_ratio
        return np.full_like(self._ratio, 1 / len(self._domains))

    def _move_reference_ratio(self) -> bool:
        """Eq. 6; False if floor and ball would leave nothing around the new reference ratio."""
        moved = project_to_bounds(
            self.delta * self._ratio + (1 - self.delta) * self._reference_ratio,
            self._initial_ratio / self.bound,
            self._initial_ratio * self.bound,
        )
        if self._problem_around(moved) is not None:
            return False
        self._reference_ratio = moved
        return True
