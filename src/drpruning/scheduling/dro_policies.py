"""The policies that solve DRO in a chi-square ball: DRPruning and naive DRO."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.common.unknown import Unknown, nan_for_null, null_for_nan
from drpruning.scheduling.curve_fit import BoolArray
from drpruning.scheduling.forecast import AT_SIZE, MIN_POINTS, LossForecast, fit_loss_curves
from drpruning.scheduling.policy import NO_REFERENCE, Decision, Evaluation, ReferencedPolicy
from drpruning.scheduling.worst_case import (
    FloatArray,
    divergence,
    nearest_ratio,
    project_to_bounds,
    worst_case_ratio,
)

ReferenceRule = Literal["minimum", "credible", "latest"]
FORECAST_START = 0.2
"""Share of training before the first forecast, unless another is asked for."""


class _BallPolicy(ReferencedPolicy):
    """Adds the limit `rho` on how far the ratio is from the reference ratio, and the floor."""

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None,
        final_params: float | None,
        reference_loss: Mapping[str, float] | None,
        rho: float,
        floor: float | Mapping[str, float] | None,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params, reference_loss)
        self.rho = float(rho)
        self._floor = self._array(floor, "floor") if isinstance(floor, Mapping) else floor
        self._check_feasible()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._check_feasible()

    def continue_from(self, state: Mapping[str, Any]) -> None:
        super().continue_from(state)
        self._check_feasible()

    def _check_feasible(self) -> None:
        scores = np.zeros_like(self._reference_ratio)
        try:
            worst_case_ratio(scores, self._reference_ratio, self.rho, self._floor)
        except ValueError as error:
            raise BadInput(f"{self.name}: {error}") from None

    def _ratio_from(self, excess: FloatArray) -> FloatArray:
        return worst_case_ratio(excess, self._reference_ratio, self.rho, self._floor)

    def _explain(self) -> dict[str, Any]:
        return self._ball(self._reference_ratio)

    def _ball(self, reference_ratio: FloatArray) -> dict[str, Any]:
        """How far the ratio is from this reference ratio, and which floors hold it up."""
        floor = reference_ratio.min() if self._floor is None else self._floor
        floors = np.broadcast_to(np.asarray(floor, dtype=np.float64), self._ratio.shape)
        at_floor = self._ratio <= floors * (1 + 1e-9)
        return {
            "rho": self.rho,
            "divergence": divergence(self._ratio, reference_ratio),
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
        reference_loss: Loss that each domain should reach, in nats; by default 0, so that the
            scores are the losses themselves.
    """

    name = "naive_dro"

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
        *,
        rho: float = 0.1,
        floor: float | Mapping[str, float] | None = None,
        reference_loss: Mapping[str, float] | None = None,
    ) -> None:
        if reference_loss is None:
            reference_loss = dict.fromkeys(initial_ratio, 0.0)
        super().__init__(initial_ratio, total_steps, final_params, reference_loss, rho, floor)


class DRPruning(_BallPolicy):
    """DRO with reference losses forecast from the run itself and a moving reference ratio.

    At an evaluation (arXiv 2411.14055, Figure 1): the losses give the reference losses (3.2,
    Eq. 4), these the ratio around the reference ratio as it was (Eq. 3 and 5), and then the
    reference ratio moves (3.3, Eq. 6).

    The reference loss of a domain is the smallest forecast so far of its loss at the end of
    training, where no forecast counts for more than the smallest loss seen of a model of final
    size, or for less than 0. A forecast that cannot be trusted leaves it where it was; where there
    was none it is that smallest loss, if there is one, until a forecast can be trusted. Before the
    first forecast it is the initial one; without that the ratio stays where it is.

    Args:
        initial_ratio: Share of each domain at the start, and the first reference ratio.
        total_steps: Length of training, in optimizer steps.
        final_params: Number of parameters at the end, if it changes during training; the updates
            then say how many there are.
        rho: Largest chi-square divergence of the ratio from the reference ratio.
        floor: Smallest share, for all domains or by name; by default the smallest reference share.
        reference_loss: Initial reference loss of each domain, in nats.
        loss_weight: Weight of a new loss in the moving average of losses, in (0, 1]; 1 takes the
            losses as they are.
        forecast: Whether to forecast; if not, the initial reference loss stays.
        forecast_start: Share of training before the first forecast.
        min_quality: Smallest quality (see `LossForecast`) of a forecast that is used, in [0, 1]; 0
            takes every finite one.
        reference_rule: Which of the forecasts so far is the reference loss: the smallest
            (`minimum`, the paper's), the smallest but not below the latest forecast's interval
            (`credible`), or the latest (`latest`).
        moving_reference: Whether the reference ratio moves.
        reference_start: Share of training before it first moves.
        delta: How far it moves towards the new ratio each time, in [0, 1].
        bound: It stays within [1/bound, bound] times the initial ratio; at least 1.
    """

    name = "drpruning"

    def __init__(  # noqa: PLR0913 - each part of the method can be set on its own
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int,
        final_params: float | None = None,
        *,
        rho: float = 0.1,
        floor: float | Mapping[str, float] | None = None,
        reference_loss: Mapping[str, float] | None = None,
        loss_weight: float = 1.0,
        forecast: bool = True,
        forecast_start: float = FORECAST_START,
        min_quality: float = 0.5,
        reference_rule: ReferenceRule = "minimum",
        moving_reference: bool = True,
        reference_start: float = 0.4,
        delta: float = 0.1,
        bound: float = 2.0,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params, reference_loss, rho, floor)
        for setting, value, valid in (
            ("loss_weight", loss_weight, 0 < loss_weight <= 1),
            ("forecast_start", forecast_start, 0 <= forecast_start <= 1),
            ("min_quality", min_quality, 0 <= min_quality <= 1),
            ("reference_start", reference_start, 0 <= reference_start <= 1),
            ("delta", delta, 0 <= delta <= 1),
        ):
            if not valid:
                raise BadInput(f"{setting} must lie between 0 and 1, not {value}")
        if not 1 <= bound < math.inf:
            raise BadInput(f"bound must be at least 1, not {bound}")
        if reference_rule not in get_args(ReferenceRule):
            rules = ", ".join(get_args(ReferenceRule))
            raise BadInput(f"reference_rule must be one of {rules}, not {reference_rule!r}")
        self.loss_weight = loss_weight
        self.min_quality = min_quality
        self.reference_rule = reference_rule
        self.delta = delta
        self.bound = bound
        self._forecast_from = forecast_start * total_steps if forecast else math.inf
        self._move_from = reference_start * total_steps if moving_reference else math.inf
        self._final_step = total_steps
        self._reset_history()

    def _reset_history(self) -> None:
        """Start a loss history."""
        n = len(self._domains)
        self._steps: list[int] = []
        self._params: list[float] = []
        self._losses: list[FloatArray] = []
        self._average = np.full(n, np.nan)
        self._has_forecast = np.zeros(n, dtype=bool)
        self._provisional = np.zeros(n, dtype=bool)

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        super().continue_from(state)
        self._reset_history()

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        columns = np.array(self._losses).reshape(-1, len(self._domains)).T
        return super().state_dict() | {
            "average_loss": self._known(self._average),
            "has_forecast": self._by_domain(self._has_forecast.tolist()),
            "provisional": self._by_domain(self._provisional.tolist()),
            "history": {
                "steps": list(self._steps),
                "params": null_for_nan(self._params),
                "losses": self._by_domain(null_for_nan(column.tolist()) for column in columns),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        super().load_state_dict(state)
        history = state["history"]
        self._steps = list(history["steps"])
        self._params = [nan_for_null(size) for size in history["params"]]
        columns = [[nan_for_null(v) for v in history["losses"][d]] for d in self._domains]
        self._losses = list(np.array(columns, dtype=np.float64).T)
        average = state["average_loss"] or {}
        self._average = np.array([average.get(d, math.nan) for d in self._domains])
        self._has_forecast = np.array([state["has_forecast"][d] for d in self._domains])
        self._provisional = np.array([state["provisional"][d] for d in self._domains])

    def _decide(self, evaluation: Evaluation) -> Decision:
        step, unusable = evaluation.step, evaluation.unusable
        losses = self._record(evaluation)
        forecast: FloatArray | None = None
        about_forecasts: dict[str, Any] = {}
        if step > 0 and step >= self._forecast_from:
            forecast, about_forecasts = self._forecast()
            for name in about_forecasts["refused"]:
                if math.isnan(self._reference_loss[self._domains.index(name)]):
                    unusable.setdefault(
                        name, f"{NO_REFERENCE}: no model of final size was evaluated"
                    )
        # Figure 1 of the paper: the ratio is the worst case around the reference ratio as it was,
        # and only then does that move (Eq. 6). So the divergence that is explained is the one that
        # `rho` limited, and not that from where the reference ratio goes now.
        excess = self._follow(losses, unusable)
        ball = self._ball(self._reference_ratio)
        moved = not unusable and step >= self._move_from and self._move_reference_ratio()
        return self._decision(
            unusable=unusable,
            reference_ratio=self._reference_ratio,
            reference_loss=self._reference_loss,
            forecast=forecast,
            excess=excess,
            loss=self._known(losses) or Unknown(),
            **about_forecasts,
            reference_ratio_updated=moved,
            **ball,
        )

    def _record(self, evaluation: Evaluation) -> FloatArray:
        """Add an evaluation to the history; returns the losses to go by, averaged if wanted."""
        losses, params = evaluation.losses, evaluation.params
        w = self.loss_weight
        averaged = w * losses + (1 - w) * self._average if w < 1 else losses
        averaged = np.where(np.isnan(averaged), losses, averaged)  # the first of its domain
        self._average = np.where(np.isnan(averaged), self._average, averaged)
        self._steps.append(evaluation.step)
        size = math.nan if params is None else float(params)
        self._params.append(size if 0 < size < math.inf else math.nan)
        self._losses.append(averaged)
        return averaged

    def _forecast(self) -> tuple[FloatArray, dict[str, Any]]:
        """Forecast, and set the reference loss; returns forecasts [n] and why they are so."""
        losses = np.array(self._losses).T
        params = np.array(self._params)
        final = self.final_params if np.isfinite(params).any() else None
        fits = fit_loss_curves(
            self._steps, losses, self._final_step, None if final is None else params, final
        )
        seen = np.where(np.isnan(losses), np.inf, losses)
        if final is not None:
            seen[:, ~(params <= AT_SIZE * final)] = np.inf
        # A model of final size has reached the smallest loss already: a forecast above it would
        # call a domain finished that can still get there. While pruning, losses of larger models
        # do not count, as the final one may never reach them.
        smallest = seen.min(axis=1)
        forecast = np.clip(fits.forecast, 0, smallest)
        trusted = np.isfinite(forecast) & (fits.quality >= self.min_quality)
        low = np.where(np.isfinite(fits.low), np.fmin(fits.low, smallest), -np.inf)
        self._update_reference_loss(forecast, low, trusted)
        self._fall_back_to_smallest_loss(smallest, np.isfinite(forecast) & ~trusted)
        return forecast, self._explain_forecasts(fits, trusted, with_params=final is not None)

    def _update_reference_loss(
        self, forecast: FloatArray, low: FloatArray, trusted: BoolArray
    ) -> None:
        before = np.where(self._has_forecast, self._reference_loss, np.inf)
        if self.reference_rule == "latest":
            before = forecast
        chosen = np.fmin(forecast, before)
        if self.reference_rule == "credible":
            chosen = np.fmax(chosen, low)
        self._reference_loss = np.where(trusted, chosen, self._reference_loss)
        self._has_forecast = self._has_forecast | trusted
        self._provisional = self._provisional & ~trusted

    def _fall_back_to_smallest_loss(self, smallest: FloatArray, distrusted: BoolArray) -> None:
        """Where a first forecast is not trusted and nothing is known: the smallest loss seen."""
        nothing = np.isnan(self._reference_loss) | self._provisional
        self._provisional = self._provisional | (distrusted & nothing & np.isfinite(smallest))
        self._reference_loss = np.where(self._provisional, smallest, self._reference_loss)

    def _explain_forecasts(
        self, fits: LossForecast, trusted: BoolArray, *, with_params: bool
    ) -> dict[str, Any]:
        """`forecast_interval`, `forecast_quality`, `forecast_since`, `no_forecast`, `refused`."""
        usable = np.array(self._steps) > 0
        if with_params:
            usable &= np.isfinite(self._params)
        points = np.isfinite(np.array(self._losses))[usable].sum(axis=0)
        begun = min((step for step in self._steps if step > 0), default=0)
        none, refused = {}, {}
        for i, name in enumerate(self._domains):
            if points[i] < MIN_POINTS:
                none[name] = f"it has {points[i]} of the {MIN_POINTS} points that a forecast needs"
            elif math.isnan(fits.forecast[i]):
                none[name] = "no fit of its losses is finite"
            elif not trusted[i]:
                refused[name] = self._distrust(fits, i)
        intervals = np.column_stack([fits.low, fits.high])
        return {
            "forecast_interval": {
                name: (low, high)
                for name, (low, high) in self._by_domain(intervals.tolist()).items()
                if math.isfinite(low) and math.isfinite(high)
            },
            "forecast_quality": self._named(fits.quality),
            "forecast_since": {
                name: step for name, step in self._named(fits.first_step).items() if step > begun
            },
            "no_forecast": none,
            "refused": refused,
        }

    def _distrust(self, fits: LossForecast, i: int) -> str:
        """Why the forecast of domain i is not used."""
        low, high = fits.low[i], fits.high[i]
        if fits.rising[i]:
            return "its losses rise"
        if math.isnan(low):
            return "its points are too few to tell how good the forecast is"
        interval = f"90% interval {low:.3f} to {high:.3f}"
        return f"its {interval} has quality {fits.quality[i]:.2f}, below {self.min_quality:g}"

    def _move_reference_ratio(self) -> bool:
        """Eq. 6; False if floor and ball would leave nothing around the new reference ratio."""
        moved = project_to_bounds(
            self.delta * self._ratio + (1 - self.delta) * self._reference_ratio,
            self._initial_ratio / self.bound,
            self._initial_ratio * self.bound,
        )
        if divergence(nearest_ratio(moved, self._floor), moved) > self.rho:
            return False
        self._reference_ratio = moved
        return True
