"""Forecasts of where a loss curve will end, and of how reliable that is (DRPruning, Eq. 4)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drpruning.scheduling.change_points import first_points
from drpruning.scheduling.curve_fit import (
    BoolArray,
    Curves,
    Fits,
    FloatArray,
    IndexArray,
    fit_curves,
    varies,
)
from drpruning.scheduling.intervals import end_intervals

MIN_POINTS = 4
AT_SIZE = 1.05  # a model of at most this many times the final parameters counts as of final size
_MIN_POINTS_WITH_P = 8  # of an interval: with two exponents fewer leave nothing to judge noise by
_USELESS = 0.2  # half-width of an interval, relative to the loss, at which the quality is 0
_RANKED = 64  # points, at most, of which all pairs are compared
_AT_ONCE = 64  # domains: the arrays of more of them no longer fit into the processor's caches
_RISING = 2.3  # Kendall's tau over its standard deviation


@dataclass(frozen=True)
class LossForecast:
    """Fits of `A * P**-alpha * T**-beta + E` to the loss curves of n domains; all arrays [n].

    A domain with fewer than four usable points, or without a finite fit, has NaN throughout, and
    quality 0.

    Attributes:
        forecast: Loss at the final step and final number of parameters: the mean over the three
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
        first_step: First step used: earlier points belong to another curve (see `change_points`).
        objective: Mean Huber loss (delta 1e-3) of the best fit to the points used.
        A: Factor of the best fit, for T in steps and P in parameters.
        alpha: Its exponent of P; 0 where P is not given or constant, its factor then being in A.
        beta: Its exponent of T.
        E: Its irreducible loss, in the unit of the losses.
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


def fit_loss_curves(
    steps: npt.ArrayLike,
    losses: npt.ArrayLike,
    final_step: float,
    params: npt.ArrayLike | None = None,
    final_params: float | None = None,
) -> LossForecast:
    """Fit `A * P**-alpha * T**-beta + E` to loss curves and forecast their end (DRPruning, Eq. 4).

    A point is used if its step is positive and its step, loss and number of parameters are
    finite; so NaN marks a missing point, and an evaluation at step 0, where `T**-beta` diverges,
    is left out. Four points are enough. Where a curve changes its course (a kink, a jump, a rise),
    the points before are left out if one fit to all is significantly worse.

    Args:
        steps: Training step T of each evaluation [n, m], or [m] for all domains.
        losses: Validation losses [n, m].
        final_step: The step to forecast.
        params: Number of parameters P at each evaluation [n, m] or [m].
        final_params: The number of parameters to forecast; needed if `params` varies.

    Returns:
        The forecasts and best fits, one for each of the n domains.

    Raises:
        ValueError: If shapes do not agree, or a final value is missing or not positive.
    """
    y = np.asarray(losses, dtype=np.float64)
    if y.ndim != 2:
        raise ValueError(f"losses must be [domains, evaluations], not of shape {y.shape}")
    y, log_t, log_p = _in_order(y, steps, final_step, params, final_params)
    used = np.isfinite(y) & np.isfinite(log_t) & np.isfinite(log_p)
    curves = Curves.of(y, used, log_t, log_p)
    if curves.with_p.any() and final_params is None:
        raise ValueError("params varies, so final_params must be given")

    table = np.full((len(y), 10), np.nan)
    rising = np.zeros(len(y), dtype=bool)
    rows = np.flatnonzero(curves.count >= MIN_POINTS)
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        for some in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
            if len(some):
                table[some], rising[some] = _forecasts(curves.take(some))
        forecast, low, high, quality, first, objective, a, e, alpha, beta = table.T
        quality[~curves.with_p & _larger(log_p, used)] = 0
        A = np.exp(a + beta * np.log(final_step) + alpha * np.log(final_params or 1.0))
    return LossForecast(
        forecast=forecast,
        low=low,
        high=high,
        quality=np.nan_to_num(quality, nan=0.0),
        rising=rising,
        first_step=np.round(np.exp(first) * final_step, 9),
        objective=objective,
        A=A,
        alpha=alpha,
        beta=beta,
        E=np.exp(e),
    )


def _in_order(
    y: FloatArray,
    steps: npt.ArrayLike,
    final_step: float,
    params: npt.ArrayLike | None,
    final_params: float | None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Losses, log(T / final T) and log(P / final P) [n, m], every row in the order of its steps."""
    log_t = _log_ratio(steps, final_step, y.shape, "step")
    log_p = np.zeros_like(y)
    if params is not None:
        log_p = _log_ratio(params, 1.0 if final_params is None else final_params, y.shape, "params")
    order = np.argsort(log_t, axis=1, kind="stable")
    y, log_t, log_p = (np.take_along_axis(a, order, axis=1) for a in (y, log_t, log_p))
    return y, log_t, log_p


def _log_ratio(
    values: npt.ArrayLike, final: float, shape: tuple[int, ...], name: str
) -> FloatArray:
    """log(values / final) [n, m], NaN where it is not defined."""
    if not (np.isfinite(final) and final > 0):
        raise ValueError(f"final_{name} must be positive, not {final}")
    try:
        v = np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
    except ValueError:
        got = np.shape(values)
        raise ValueError(f"{name} of shape {got} does not fit losses of shape {shape}") from None
    return np.log(np.where(np.isfinite(v) & (v > 0), v, np.nan) / final)


def _forecasts(curves: Curves) -> tuple[FloatArray, BoolArray]:
    """Forecast the end of each curve.

    Returns:
        The columns forecast, low, high, quality, log T of the first point, objective and theta
        [n, 10], and which curves rise [n].
    """
    fits = _fit(curves)
    first = np.zeros(len(curves.y), dtype=np.intp)
    for rows in _kinds(curves):
        first[rows] = first_points(curves.take(rows), fits.theta[rows])
    changed = np.flatnonzero(first > np.argmax(curves.used > 0, axis=1))
    if len(changed):
        curves = curves.since(first)
        _replace(fits, changed, _fit(curves.take(changed)))
    interval = np.full((len(first), 3), np.nan)
    fitted = np.isfinite(fits.objective)
    enough = curves.count >= np.where(curves.with_p, _MIN_POINTS_WITH_P, MIN_POINTS)
    enough &= varies(curves.log_t, curves.used > 0)
    for rows in _kinds(curves):
        bounded = rows[(fitted & enough)[rows]]
        if len(bounded):
            interval[bounded] = end_intervals(curves.take(bounded), fits.theta[bounded])
    low, middle, high = interval.T
    half = (high - low) / 2
    rising = _rises(curves)
    kept = np.clip(fits.end, low, high)
    far = (np.abs(fits.end - kept) > half / 2) & curves.with_p
    certain = ~(far | rising) & (low > 0)
    quality = np.where(certain, np.clip(1 - half / (_USELESS * middle), 0, 1), 0)
    # Around a plateau the best fits may bend up or down with the latest points alone.
    shrinking = _larger(curves.log_p, curves.used > 0)
    largest = np.where(curves.used > 0, curves.y, -np.inf).max(axis=1)
    end = np.where(quality > 0, kept, np.where(shrinking, fits.end, np.fmin(fits.end, largest)))
    first_t = np.take_along_axis(curves.log_t, first[:, None], axis=1)[:, 0]
    columns = [end, low, high, quality, first_t, fits.objective, fits.theta]
    table = np.column_stack(columns)
    table[~fitted] = np.nan
    return table, rising & fitted


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
    n = len(curves.y)
    fits = Fits(np.empty(n), np.empty(n), np.empty((n, 4)))
    for rows in _kinds(curves):
        _replace(fits, rows, fit_curves(curves.take(rows)))
    return fits


def _replace(fits: Fits, rows: IndexArray, new: Fits) -> None:
    fits.end[rows], fits.objective[rows] = new.end, new.objective
    fits.theta[rows] = new.theta


def _rises(curves: Curves) -> BoolArray:
    """Test by Kendall's tau whether the losses rise significantly while P is constant [n]."""
    some = np.unique(np.linspace(0, curves.y.shape[1] - 1, _RANKED).astype(np.intp))
    y, used = curves.y[:, some], curves.used[:, some]
    pairs = used[:, :, None] * used[:, None, :] * np.triu(np.ones((len(some),) * 2), 1)
    score = np.sum(np.sign(y[:, None, :] - y[:, :, None]) * pairs, axis=(1, 2))
    m = used.sum(axis=1)
    deviation = np.sqrt(m * (m - 1) * (2 * m + 5) / 18)
    return np.asarray((score > _RISING * deviation) & ~curves.with_p)
