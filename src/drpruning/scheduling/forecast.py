"""Forecasts of where a loss curve will end, and of how reliable that is (DRPruning, Eq. 4)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drpruning.scheduling.change_points import first_points
from drpruning.scheduling.curve_fit import (
    ALPHA,
    BEST,
    BETA,
    OFFSET,
    BoolArray,
    Curves,
    Fits,
    FloatArray,
    IndexArray,
    fit_curves,
    varies,
)
from drpruning.scheduling.intervals import end_intervals
from drpruning.scheduling.warm_start import WarmCurves, fit_warm_curves

MIN_POINTS = 4
AT_SIZE = 1.05  # a model of at most this many times the final parameters counts as of final size
# Of an interval, by what it is mixed over: fewer leave nothing to judge noise by.
_MIN_POINTS_OF_INTERVAL = {
    (BETA,): MIN_POINTS,
    (BETA, OFFSET): 5,
    (BETA, ALPHA): 8,
    (BETA, OFFSET, ALPHA): 8,
}
_USELESS = 0.2  # half-width of an interval, relative to the loss, at which the quality is 0
_RANKED = 64  # points, at most, of which all pairs are compared
_AT_ONCE = 64  # domains: the arrays of more of them no longer fit into the processor's caches
_RISING = 2.3  # Kendall's tau over its standard deviation


@dataclass(frozen=True)
class LossForecast:
    """Fits of `A * P**-alpha * (x + x0)**-beta + E` to the loss curves of n domains; arrays [n].

    A domain with fewer than four usable points, or without a finite fit, has NaN throughout, and
    quality 0.

    Attributes:
        forecast: Loss at the final amount and final number of parameters: the mean over the three
            best fits, kept within the interval where its quality is above 0, and otherwise at most
            the largest loss used, unless the model still shrinks. It may lie above losses already
            seen.
        low: Lower end of the 90% interval of the loss at the end, as it would be without noise; NaN
            where there are too few points for one.
        high: Its upper end.
        quality: From 0 to 1: 1 less the half-width of the interval over a fifth of the loss. 0 also
            where there is no interval, where the curve rises, or where, while the number of
            parameters changes, the best fits end far outside the interval.
        rising: Whether the points rise significantly while the number of parameters stays.
        first_step: First amount used: earlier points belong to another curve (see
            `change_points`).
        objective: Mean Huber loss (delta 1e-3) of the best fit to the points used.
        A: Factor of the best fit, for x in the unit of the amounts and P in parameters.
        alpha: Its exponent of P; 0 where P is not given or constant, its factor then being in A.
        beta: Its exponent of the amount.
        E: Its irreducible loss, in the unit of the losses.
        offset: Its warm start x0, in the unit of the amounts; 0 where the law has none.
        best: The three best fits as A at the final number of parameters (its logarithm), beta,
            offset and E [n, 3, 4]; NaN where there are fewer.
    """

    forecast: FloatArray
    low: FloatArray
    high: FloatArray
    quality: FloatArray
    rising: BoolArray
    first_step: FloatArray
    objective: FloatArray
    A: FloatArray
    alpha: FloatArray
    beta: FloatArray
    E: FloatArray
    offset: FloatArray
    best: FloatArray = field(repr=False)

    def at(self, amount: npt.ArrayLike) -> FloatArray:
        """Compute the loss that the three best fits expect, on average, at another amount.

        Args:
            amount: One amount for all domains, one of each [n], or several of each [n, k].

        Returns:
            The losses [n] or [n, k] at the final number of parameters; NaN where a domain has no
            fit. Unlike `forecast` they are not kept within the interval.
        """
        x = np.asarray(amount, dtype=np.float64)
        x = np.broadcast_to(x, np.broadcast_shapes(x.shape, (len(self.A), *x.shape[1:])))
        log_a, beta, offset, e = (
            self.best[:, :, i].reshape(len(self.A), -1, *(1,) * (x.ndim - 1)) for i in range(4)
        )
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            losses = np.exp(log_a - beta * np.log(x[:, None] + offset)) + e
        known = np.isfinite(losses)
        total: FloatArray = np.sum(np.where(known, losses, 0), axis=1)
        count = known.sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def fit_loss_curves(
    amounts: npt.ArrayLike,
    losses: npt.ArrayLike,
    final_amount: npt.ArrayLike,
    params: npt.ArrayLike | None = None,
    final_params: float | None = None,
    *,
    warm_start: bool = False,
) -> LossForecast:
    """Fit a power law to each domain's loss curve and forecast its end (DRPruning, Eq. 4).

    Without `warm_start` the law is the paper's, `A * P**-alpha * T**-beta + E` in training steps T.
    An evaluation at step 0, where `T**-beta` diverges, is left out. With it, it is `A * P**-alpha *
    (x + x0)**-beta + E`: x is usually the data of the domain, and x0, fitted too, what the model
    knew of it before. An evaluation at 0 counts, and amounts that do not vary allow no forecast.

    A point is used if its amount, loss and number of parameters are finite, so NaN marks a missing
    one. Four points are enough. Where a curve changes its course (a kink, a jump, a rise), the
    points before are left out if one fit to all is significantly worse.

    Args:
        amounts: Amount of training at each evaluation [n, m], or [m] for all domains.
        losses: Validation losses [n, m].
        final_amount: The amount to forecast, for all domains or of each [n].
        params: Number of parameters P at each evaluation [n, m] or [m].
        final_params: The number of parameters to forecast; needed if `params` varies.
        warm_start: Whether the law has a warm start.

    Returns:
        The forecasts and best fits, one for each of the n domains.

    Raises:
        ValueError: Shapes do not agree, or a final value is missing or not positive. With a warm
            start a final amount may be 0.
    """
    y = np.asarray(losses, dtype=np.float64)
    if y.ndim != 2:
        raise ValueError(f"losses must be [domains, evaluations], not of shape {y.shape}")
    x, final = _amounts(amounts, final_amount, y.shape, warm_start=warm_start)
    log_p = np.zeros_like(y)
    if params is not None:
        log_p = _log_params(params, final_params, y.shape)
    order = np.argsort(x, axis=1, kind="stable")
    y, x, log_p = (np.take_along_axis(a, order, axis=1) for a in (y, x, log_p))
    used = np.isfinite(y) & np.isfinite(x) & np.isfinite(log_p)
    unit = _extent(x, used, final) if warm_start else final
    table, best = np.full((len(y), 7), np.nan), np.full((len(y), BEST, 5), np.nan)
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        if warm_start:
            curves: Curves = WarmCurves.among(y, used, x / unit[:, None], final / unit, log_p)
        else:
            curves = Curves.of(y, used, np.log(x / final[:, None]), log_p)
        if curves.with_p.any() and final_params is None:
            raise ValueError("params varies, so final_params must be given")
        rows = np.flatnonzero((curves.count >= MIN_POINTS) & (unit > 0))
        for some in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
            if len(some):
                table[some], best[some] = _forecasts(curves.take(some))
        table[~curves.with_p & _larger(log_p, used), 3] = 0  # its quality
        return _in_given_units(table, best, x, unit, final, final_params or 1.0)


def _in_given_units(
    table: FloatArray,
    best: FloatArray,
    x: FloatArray,
    unit: FloatArray,
    final: FloatArray,
    final_params: float,
) -> LossForecast:
    """Turn the results of `_forecasts` into those for amounts x [n, m] in the caller's unit."""
    forecast, low, high, quality, rising, first, objective = table.T
    offset = np.exp(best[:, :, OFFSET]) * unit[:, None]
    a, e, alpha, beta, _ = np.moveaxis(best, 2, 0)
    log_a = a + beta * np.log(final[:, None] + offset)
    fits = np.stack([log_a, beta, offset, np.exp(e)], axis=2)
    known = np.flatnonzero(np.isfinite(first))
    first_step = np.full(len(x), np.nan)
    first_step[known] = x[known, first[known].astype(np.intp)]
    return LossForecast(
        forecast=forecast,
        low=low,
        high=high,
        quality=np.nan_to_num(quality, nan=0.0),
        rising=rising == 1,
        first_step=first_step,
        objective=objective,
        A=np.exp(log_a[:, 0] + alpha[:, 0] * np.log(final_params)),
        alpha=alpha[:, 0],
        beta=beta[:, 0],
        E=fits[:, 0, 3],
        offset=offset[:, 0],
        best=fits,
    )


def _amounts(
    amounts: npt.ArrayLike, final: npt.ArrayLike, shape: tuple[int, ...], *, warm_start: bool
) -> tuple[FloatArray, FloatArray]:
    """Amounts [n, m], NaN where they cannot be used, and final amounts [n]."""
    x, last = _broadcast(amounts, shape, "amounts"), _broadcast(final, shape[:1], "final_amount")
    low = last < 0 if warm_start else last <= 0
    if not np.isfinite(last).all() or low.any():
        sign = "not negative" if warm_start else "positive"
        raise ValueError(f"final_amount must be {sign}, not {last.tolist()}")
    usable = np.isfinite(x) & ((x >= 0) if warm_start else (x > 0))
    return np.where(usable, x, np.nan), last


def _broadcast(values: npt.ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
    try:
        return np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
    except ValueError:
        got = np.shape(values)
        raise ValueError(
            f"{name} of shape {got} does not fit losses of {shape[0]} domains"
        ) from None


def _log_params(params: npt.ArrayLike, final: float | None, shape: tuple[int, ...]) -> FloatArray:
    """log(P / final P) [n, m], NaN where it is not defined."""
    if final is not None and not (np.isfinite(final) and final > 0):
        raise ValueError(f"final_params must be positive, not {final}")
    p = _broadcast(params, shape, "params")
    return np.log(np.where(np.isfinite(p) & (p > 0), p, np.nan) / (1.0 if final is None else final))


def _extent(x: FloatArray, used: BoolArray, final: FloatArray) -> FloatArray:
    """From the smallest amount used to the largest or final one [n]; 0 where they do not vary."""
    high: FloatArray = np.where(used, x, -np.inf).max(axis=1, initial=-np.inf)
    low: FloatArray = np.where(used, x, np.inf).min(axis=1, initial=np.inf)
    return np.where(high > low, np.maximum(high, final) - low, 0)


def _forecasts(curves: Curves) -> tuple[FloatArray, FloatArray]:
    """Forecast the end of each curve.

    Returns:
        The columns forecast, low, high, quality, rising (0 or 1), index of the first point and
        objective [n, 7], and the three best fits [n, 3, 5].
    """
    fits = _fit(curves)
    first = np.zeros(len(curves.y), dtype=np.intp)
    for rows in _kinds(curves):
        known = _from_offset(curves.take(rows), fits.theta[rows])
        first[rows] = first_points(known, fits.theta[rows])
    changed = np.flatnonzero(first > np.argmax(curves.used > 0, axis=1))
    if len(changed):
        curves = curves.since(first)
        fits.replace(changed, _fit(curves.take(changed)))
    interval, laws = np.full((len(first), 3), np.nan), fits.theta.copy()
    fitted = np.isfinite(fits.objective)
    varied = varies(_from_offset(curves, fits.theta).log_t, curves.used > 0)
    for rows in _kinds(curves):
        least = _MIN_POINTS_OF_INTERVAL[curves.take(rows).mixed]
        bounded = rows[(fitted & varied & (curves.count >= least))[rows]]
        if len(bounded):
            some = end_intervals(curves.take(bounded), fits.theta[bounded])
            interval[bounded], laws[bounded] = some
    low, middle, high = interval.T
    half = (high - low) / 2
    rising = _rises(curves)
    mixed = np.any(laws != fits.theta, axis=1)  # over x0: the best fits alone are worse forecasts
    kept = np.where(mixed, middle, np.clip(fits.end, low, high))
    far = (np.abs(fits.end - kept) > half / 2) & curves.with_p
    certain = ~(far | rising) & (low > 0)
    quality = np.where(certain, np.clip(1 - half / (_USELESS * middle), 0, 1), 0)
    # Around a plateau the best fits may bend up or down with the latest points alone.
    shrinking = _larger(curves.log_p, curves.used > 0)
    largest = np.where(curves.used > 0, curves.y, -np.inf).max(axis=1)
    end = np.where(quality > 0, kept, np.where(shrinking, fits.end, np.fmin(fits.end, largest)))
    through = mixed & (quality > 0)
    fits.best[through, 0], fits.best[through, 1:] = laws[through], np.nan
    table = np.column_stack([end, low, high, quality, rising, first, fits.objective])
    table[~fitted] = np.nan
    return table, fits.best


def _larger(log_p: FloatArray, used: BoolArray) -> BoolArray:
    """Tell for each curve whether its latest P is well above the final one [n]."""
    latest = used * np.arange(1, used.shape[1] + 1)
    latest = latest == latest.max(axis=1, keepdims=True, initial=1)
    return np.asarray(np.any((log_p > np.log(AT_SIZE)) & latest, axis=1))


def _kinds(curves: Curves) -> Iterator[IndexArray]:
    """Group the curves: those along which P varies, and those along which it does not."""
    for kind in (curves.with_p, ~curves.with_p):
        rows = np.flatnonzero(kind)
        if len(rows):
            yield rows


def _fit(curves: Curves) -> Fits:
    fits = Fits.empty(len(curves.y))
    for rows in _kinds(curves):
        some = curves.take(rows)
        fits.replace(
            rows, fit_warm_curves(some) if isinstance(some, WarmCurves) else fit_curves(some)
        )
    return fits


def _from_offset(curves: Curves, theta: FloatArray) -> Curves:
    """The curves as they are with the warm start of these fits."""
    return curves.from_offset(theta[:, OFFSET]) if isinstance(curves, WarmCurves) else curves


def _rises(curves: Curves) -> BoolArray:
    """Test by Kendall's tau whether the losses rise significantly while P is constant [n]."""
    some = np.unique(np.linspace(0, curves.y.shape[1] - 1, _RANKED).astype(np.intp))
    y, used = curves.y[:, some], curves.used[:, some]
    pairs = used[:, :, None] * used[:, None, :] * np.triu(np.ones((len(some),) * 2), 1)
    score = np.sum(np.sign(y[:, None, :] - y[:, :, None]) * pairs, axis=(1, 2))
    m = used.sum(axis=1)
    deviation = np.sqrt(m * (m - 1) * (2 * m + 5) / 18)
    return np.asarray((score > _RISING * deviation) & ~curves.with_p)
