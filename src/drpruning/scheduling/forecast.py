"""Where a loss curve will end: fits of `loss = A * P**-alpha * T**-beta + E` (DRPruning, Eq. 4).

All domains and all starts are fitted at once by a damped Gauss-Newton method on the Huber loss,
in (log A, log E, alpha, beta) with T scaled by its final value, P by its own, and both logarithms
centred so that the parameters are nearly uncorrelated. Every fit begins at an exponent of a wide
grid with the A and E that suit it best, so that hardly a local minimum is missed.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

HUBER_DELTA = 1e-3
MIN_POINTS = 4

_BETAS = np.concatenate(
    [
        [-80, -20, -5, -1.5, -0.5, -0.1, -0.02],
        [0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2.2, 3.2, 5, 8, 14, 30, 80],
    ]
).tolist()
_ALPHAS_BETAS = tuple(itertools.product((-0.5, 0.1, 0.5, 1, 2.5), (-0.5, 0.05, 0.3, 0.7, 1.5, 5)))
_FIRST_ROUND, _FINALISTS, _FINAL_ROUND = 8, 8, 60
_BEST = 3
_MAX_STEP = 3.0
_CONSTANT = 1e-4  # P that varies by less than this, relatively, tells nothing of alpha


@dataclass(frozen=True)
class LossForecast:
    """Fits of `A * P**-alpha * T**-beta + E` to the loss curves of n domains; all arrays [n].

    A domain with fewer than four usable points, or without a finite fit, has NaN throughout.

    Attributes:
        forecast: Loss at the final step and final number of parameters: the mean over the three
            best fits. It may lie above losses already seen.
        objective: Mean Huber loss (delta 1e-3) of the best fit.
        A: Factor of the best fit, for T in steps and P in parameters.
        alpha: Its exponent of P; 0 where P is not given or constant, its factor then being in A.
        beta: Its exponent of T.
        E: Its irreducible loss, in the unit of the losses.
    """

    forecast: FloatArray
    objective: FloatArray
    A: FloatArray
    alpha: FloatArray
    beta: FloatArray
    E: FloatArray


@dataclass(frozen=True)
class _Curves:
    """b curves of m points: y [b, m], log T and log P less their means [b, m]; 0 where unused."""

    y: FloatArray
    used: FloatArray  # 1 or 0
    log_t: FloatArray
    log_p: FloatArray

    def take(self, rows: npt.NDArray[np.intp]) -> "_Curves":
        return _Curves(self.y[rows], self.used[rows], self.log_t[rows], self.log_p[rows])

    def terms(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The falling part [b, m] and the irreducible part [b, 1] of the losses."""
        a, e, alpha, beta = (theta[:, i, None] for i in range(4))
        exponent = a - alpha * self.log_p - beta * self.log_t
        return np.exp(np.clip(exponent, -300, 100)) * self.used, np.exp(e)

    def huber(self, residual: FloatArray) -> FloatArray:
        """Mean Huber loss [b] of residuals [b, m] that are 0 where unused."""
        size = np.abs(residual)
        inside = np.minimum(size, HUBER_DELTA)
        total: FloatArray = np.sum(inside * (size - 0.5 * inside), axis=1)
        mean: FloatArray = total / np.sum(self.used, axis=1)
        return mean

    def residual(self, theta: FloatArray) -> FloatArray:
        falling, irreducible = self.terms(theta)
        return falling + (irreducible - self.y) * self.used


def _refine(curves: _Curves, theta: FloatArray, iterations: int) -> tuple[FloatArray, FloatArray]:
    """Damped Gauss-Newton steps on the Huber loss; returns theta [b, 4] and objective [b]."""
    theta = theta.copy()
    objective = curves.huber(curves.residual(theta))
    damping = np.ones(len(theta))
    diagonal = np.arange(4)
    for _ in range(iterations):
        falling, irreducible = curves.terms(theta)
        residual = falling + (irreducible - curves.y) * curves.used
        jacobian = np.stack(
            [falling, irreducible * curves.used, -falling * curves.log_p, -falling * curves.log_t],
            axis=1,
        )
        size = np.abs(residual)
        weight = HUBER_DELTA / np.maximum(size, HUBER_DELTA)
        gradient = jacobian @ (weight * residual)[:, :, None]
        bend = (size <= HUBER_DELTA) + damping[:, None] * weight
        hessian = (jacobian * bend[:, None, :]) @ jacobian.transpose(0, 2, 1)
        scale = hessian[:, diagonal, diagonal]
        hessian[:, diagonal, diagonal] += 1e-3 * damping[:, None] * scale + 1e-12 * scale + 1e-100
        step = np.linalg.solve(hessian, gradient)[:, :, 0]
        trial = theta - np.clip(step, -_MAX_STEP, _MAX_STEP)
        trial_objective = curves.huber(curves.residual(trial))
        better = trial_objective < objective
        theta[better] = trial[better]
        objective = np.where(better, trial_objective, objective)
        damping = np.clip(np.where(better, damping / 4, damping * 6), 1e-8, 1e12)
    return theta, objective


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
    is left out. Four points are enough.

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
    log_t = _log_ratio(steps, final_step, y.shape, "step")
    log_p = np.zeros_like(y)
    if params is not None:
        log_p = _log_ratio(params, 1.0 if final_params is None else final_params, y.shape, "params")
    used = np.isfinite(y) & np.isfinite(log_t) & np.isfinite(log_p)
    log_t, log_p = np.where(used, log_t, 0), np.where(used, log_p, 0)
    with_p = _varies(log_p, used)
    if with_p.any() and final_params is None:
        raise ValueError("params varies, so final_params must be given")
    log_p[~with_p] = 0

    n = len(y)
    out = np.full((n, 6), np.nan)
    rows = np.flatnonzero(used.sum(axis=1) >= MIN_POINTS)
    if len(rows):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            out[rows] = _fit(
                np.where(used, y, 0)[rows], used[rows], log_t[rows], log_p[rows], with_p[rows]
            )
    forecast, objective, a, e, alpha, beta = out.T
    with np.errstate(over="ignore"):
        A = np.exp(a + beta * np.log(final_step) + alpha * np.log(final_params or 1.0))
    return LossForecast(forecast, objective, A, alpha, beta, np.exp(e))


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


def _varies(x: FloatArray, used: BoolArray) -> BoolArray:
    high = np.where(used, x, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(used, x, np.inf).min(axis=1, initial=np.inf)
    varies: BoolArray = high - low > _CONSTANT
    return varies


def _fit(
    y: FloatArray, used: BoolArray, log_t: FloatArray, log_p: FloatArray, with_p: BoolArray
) -> FloatArray:
    """Columns forecast, objective, log A, log E, alpha, beta (T and P relative to their ends)."""
    n = len(y)
    count = used.sum(axis=1, keepdims=True)
    mean_t = log_t.sum(axis=1, keepdims=True) / count
    mean_p = log_p.sum(axis=1, keepdims=True) / count
    curves = _Curves(y, used.astype(float), (log_t - mean_t) * used, (log_p - mean_p) * used)

    grid = _ALPHAS_BETAS if with_p.any() else tuple((0.0, b) for b in _BETAS)
    k = len(grid)
    domain = np.repeat(np.arange(n), k)
    exponents = np.tile(np.array(grid), (n, 1))
    exponents[:, 0] *= with_p[domain]
    theta, objective = _refine(
        curves.take(domain), _starts(curves.take(domain), exponents), _FIRST_ROUND
    )
    order = np.argsort(np.where(np.isfinite(objective), objective, np.inf).reshape(n, k), axis=1)
    chosen = (np.arange(n)[:, None] * k + order[:, :_FINALISTS]).ravel()
    domain = domain[chosen]
    theta, objective = _refine(curves.take(domain), theta[chosen], _FINAL_ROUND)

    theta[:, 0] += theta[:, 2] * mean_p[domain, 0] + theta[:, 3] * mean_t[domain, 0]
    end = np.exp(theta[:, 0]) + np.exp(theta[:, 1])
    good = np.isfinite(end) & np.isfinite(objective)
    objective = np.where(good, objective, np.inf).reshape(n, -1)
    order = np.argsort(objective, axis=1, kind="stable")[:, :_BEST]
    objective = np.take_along_axis(objective, order, axis=1)
    end = np.take_along_axis(end.reshape(n, -1), order, axis=1)
    best = np.isfinite(objective)
    theta = theta.reshape(n, -1, 4)[np.arange(n), order[:, 0]]
    out = np.column_stack(
        [np.sum(np.where(best, end, 0), axis=1) / best.sum(axis=1), objective[:, 0], theta]
    )
    out[~best[:, 0]] = np.nan
    return out


def _starts(curves: _Curves, exponents: FloatArray) -> FloatArray:
    """For each pair (alpha, beta) [b, 2] the A and E of the least squares fit, kept positive."""
    alpha, beta = exponents[:, 0, None], exponents[:, 1, None]
    exponent = -alpha * curves.log_p - beta * curves.log_t
    top = np.where(curves.used > 0, exponent, -np.inf).max(axis=1, keepdims=True)
    x = np.exp(exponent - top) * curves.used
    count = curves.used.sum(axis=1)
    x_mean, y_mean = x.sum(axis=1) / count, curves.y.sum(axis=1) / count
    xc = (x - x_mean[:, None]) * curves.used
    slope = np.sum(xc * curves.y, axis=1) / np.maximum(np.sum(xc * xc, axis=1), 1e-30)
    scale = np.maximum(np.abs(y_mean), 1e-6)
    slope = np.clip(slope, 1e-6 * scale, scale / x_mean)
    irreducible = np.maximum(y_mean - slope * x_mean, 1e-6 * scale)
    return np.column_stack([np.log(slope) - top[:, 0], np.log(irreducible), exponents])
