"""Forecasts of the end of training, and the reference losses that they become."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.scheduling.curve_fit import BoolArray
from drpruning.scheduling.forecast import AT_SIZE, MIN_POINTS, LossForecast, fit_loss_curves
from drpruning.scheduling.history import LossHistory
from drpruning.scheduling.reference import References
from drpruning.scheduling.worst_case import FloatArray

ReferenceRule = Literal["minimum", "credible", "latest"]
ForecastAt = Literal["equal", "reference", "present"]


@dataclass(frozen=True, kw_only=True)
class ForecastSettings:
    """How forecasts become reference losses; see `DRPruning` for what each setting means.

    Raises:
        BadInput: A setting is outside its range.
    """

    total_steps: int
    final_params: float | None
    start: float
    at: ForecastAt
    transfer: float
    min_quality: float
    rule: ReferenceRule

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, value, known in (
            ("forecast_at", self.at, get_args(ForecastAt)),
            ("reference_rule", self.rule, get_args(ReferenceRule)),
        ):
            if value not in known:
                raise BadInput(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for name, number in (
            ("forecast_start", self.start),
            ("min_quality", self.min_quality),
            ("transfer", self.transfer),
        ):
            if not 0 <= number <= 1:
                raise BadInput(f"{name} must lie between 0 and 1, not {number}")

    def due(self, step: int) -> bool:
        """Whether it is late enough in training to forecast."""
        return step > 0 and step >= self.start * self.total_steps


class ForecastReferences:
    """Forecasts of the loss at the end of training, and the reference losses that they become.

    The present forecasts (`at="present"`) fit the loss to the steps done and so assume that every
    domain keeps the share that it has. They feed themselves: the domain with most of the data falls
    fastest, so its forecast is lowest and its excess largest. The counterfactual ones (`equal`,
    `reference`) fit the loss to the data that the domain itself has had, and read the curve off at
    the data that it would have had at the end if the rest of training gave every domain a stated
    share. So they say how far each domain would come under equal terms.
    """

    def __init__(self, domains: Sequence[str], settings: ForecastSettings) -> None:
        self._domains = tuple(domains)
        self._settings = settings
        self.made = np.zeros(len(domains), dtype=bool)  # a trusted one came in this phase [n]

    def update(
        self, history: LossHistory, references: References, share: FloatArray, *, replace: bool
    ) -> tuple[FloatArray, FloatArray, dict[str, Any]]:
        """Forecast from what was seen so far, and set the reference losses.

        Args:
            history: Of this phase, up to the present evaluation.
            references: Those in force; changed in place.
            share: Of each domain in the rest of training, for a counterfactual forecast [n].
            replace: Whether the forecasts become the reference losses.

        Returns:
            The forecasts [n], NaN where there is none; how far each loss can still fall [n], NaN
            where that is not known or not trusted; and the fields of `Explanation` about them.
        """
        final = self._settings.final_params if np.isfinite(history.params).any() else None
        # Where the learning rate warms up, or masks close, all losses rise at first. More data
        # does not make a loss rise, so what lies before the top is not on the law's curve.
        top = 0 if self._settings.at == "present" else history.peak
        fits, amounts = self._fit(history, final, share, top)
        seen = np.where(np.isnan(history.losses), np.inf, history.losses)
        seen[:, :top] = np.inf
        if final is not None:
            seen[:, ~(history.params <= AT_SIZE * final)] = np.inf
        # A model of final size has reached the smallest loss already: a forecast above it would
        # call a domain finished that can still get there. While pruning, losses of larger models
        # do not count, as the final one may never reach them.
        smallest = seen.min(axis=1)
        forecast = np.clip(fits.forecast, 0, smallest)
        trusted = np.isfinite(forecast) & (fits.quality >= self._settings.min_quality)
        if replace:
            low = np.where(np.isfinite(fits.low), np.fmin(fits.low, smallest), -np.inf)
            self._set(references, forecast, low, trusted)
            self._stand_in(references, smallest, np.isfinite(forecast) & ~trusted)
        with_params = final is not None
        explanation = self._explain(history, fits, amounts, trusted, top, with_params=with_params)
        # What noise puts above the curve, or the smallest loss below it, no data can win: a loss
        # falls no further than its curve.
        fall = fits.at(amounts[:, -1]) - fits.forecast
        reachable = np.maximum(np.fmin(history.losses[:, -1] - forecast, fall), 0)
        reachable[~trusted] = np.nan
        return forecast, reachable, explanation | self._law(fits, final, share)

    def _fit(
        self, history: LossHistory, final: float | None, share: FloatArray, top: int
    ) -> tuple[LossForecast, FloatArray]:
        """Fit all curves from the top on; returns the fits and the amounts [n, m] fitted to."""
        steps, params = history.steps, None if final is None else history.params
        end = self._settings.total_steps
        if self._settings.at == "present":
            amounts = np.broadcast_to(steps, history.losses.shape)
            return fit_loss_curves(steps, history.losses, end, params, final), amounts
        kappa = self._settings.transfer
        own = history.data
        amounts = own + kappa * (steps - own)
        left = max(end - steps[-1], 0.0)
        at_end = amounts[:, -1] + left * (share + kappa * (1 - share))
        falling = np.where(np.arange(len(steps)) < top, np.nan, history.losses)
        fits = fit_loss_curves(amounts, falling, at_end, params, final, warm_start=True)
        return fits, amounts

    def _set(
        self, references: References, forecast: FloatArray, low: FloatArray, trusted: BoolArray
    ) -> None:
        before = np.where(self.made, references.loss, np.inf)
        if self._settings.rule == "latest":
            before = forecast
        chosen = np.fmin(forecast, before)
        if self._settings.rule == "credible":
            chosen = np.fmax(chosen, low)
        references.put(chosen, "forecast", trusted)
        self.made = self.made | trusted

    def _stand_in(
        self, references: References, smallest: FloatArray, distrusted: BoolArray
    ) -> None:
        """Where a first forecast is not trusted and nothing is known: the smallest loss seen."""
        standing = references.has("smallest loss")
        new = distrusted & ~references.known & np.isfinite(smallest)
        references.put(smallest, "smallest loss", (standing & np.isfinite(smallest)) | new)

    def _explain(
        self,
        history: LossHistory,
        fits: LossForecast,
        amounts: FloatArray,
        trusted: BoolArray,
        top: int,
        *,
        with_params: bool,
    ) -> dict[str, Any]:
        """`forecast_interval`, `forecast_quality`, `forecast_since`, `no_forecast`, `refused`."""
        usable = history.steps > (0 if self._settings.at == "present" else -1)
        if with_params:
            usable &= np.isfinite(history.params)
        fitted = usable & (np.arange(len(usable)) >= top)
        points = np.isfinite(history.losses[:, fitted]).sum(axis=1)
        none, refused = {}, {}
        for i, name in enumerate(self._domains):
            if points[i] < MIN_POINTS:
                none[name] = f"it has {points[i]} of the {MIN_POINTS} points that a forecast needs"
            elif math.isnan(fits.forecast[i]):
                none[name] = "no fit of its losses is finite"
            elif not trusted[i]:
                refused[name] = self._distrust(fits, i)
        intervals = zip(self._domains, fits.low.tolist(), fits.high.tolist(), strict=True)
        return {
            "forecast_interval": {
                name: (low, high)
                for name, low, high in intervals
                if math.isfinite(low) and math.isfinite(high)
            },
            "forecast_quality": dict(zip(self._domains, fits.quality.tolist(), strict=True)),
            "forecast_since": self._since(history.steps[usable], amounts[:, usable], fits),
            "no_forecast": none,
            "refused": refused,
        }

    def _since(
        self, steps: FloatArray, amounts: FloatArray, fits: LossForecast
    ) -> dict[str, float]:
        """The first step used, for domains of which earlier ones were left out."""
        since = {}
        for name, own, first in zip(self._domains, amounts, fits.first_step, strict=True):
            # The fit says the amount of its first point; rounding may have moved it by a little.
            if math.isfinite(first) and np.any(early := own < first * (1 - 1e-6)):
                since[name] = float(steps[np.count_nonzero(early)])
        return since

    def _law(
        self, fits: LossForecast, final: float | None, share: FloatArray
    ) -> dict[str, dict[str, Any]]:
        """`forecast_law` and `forecast_share`; nothing where the fit is to steps."""
        if self._settings.at == "present":
            return {}
        with np.errstate(over="ignore", invalid="ignore"):  # such a law is left out below
            factor = fits.A if final is None else fits.A * final**-fits.alpha
        constants = np.column_stack([factor, fits.beta, fits.E, fits.offset])
        rows = zip(self._domains, constants.tolist(), strict=True)
        law = {
            name: dict(zip(("A", "beta", "E", "offset"), row, strict=True))
            | {"transfer": self._settings.transfer}
            for name, row in rows
            if np.all(np.isfinite(row))
        }
        shares = dict(zip(self._domains, share.tolist(), strict=True))
        return {"forecast_law": law, "forecast_share": {name: shares[name] for name in law}}

    def _distrust(self, fits: LossForecast, i: int) -> str:
        """Why the forecast of domain i is not used."""
        low, high = fits.low[i], fits.high[i]
        if fits.rising[i]:
            return "its losses rise"
        if math.isnan(low):
            return "its points are too few to tell how good the forecast is"
        interval = f"90% interval {low:.3f} to {high:.3f}"
        least = self._settings.min_quality
        return f"its {interval} has quality {fits.quality[i]:.2f}, below {least:g}"
