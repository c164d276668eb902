"""Fits of `A * P**-alpha * T**-beta + E` to many curves at once.

All curves and all starts are fitted together by a damped Gauss-Newton method on the Huber loss, in
(log A, log E, alpha, beta) with both logarithms centred, so that the parameters are nearly
uncorrelated. The fits start from a wide grid of exponents, each with the A and E that fit best, so
that the global minimum is hardly ever missed.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]

HUBER_DELTA = 1e-3
ALPHA, BETA, OFFSET = 2, 3, 4  # columns of theta, after log A and log E
# Of log x0, for amounts in units of their extent from first to final. Far above, the law is an
# exponential in x; far below, only a point at 0 can tell x0 from 0.
LOG_OFFSETS = (float(np.log(1e-5)), float(np.log(10.0)))

_BETAS = np.concatenate(
    [
        [-80, -20, -5, -1.5, -0.5, -0.1, -0.02],
        [0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2.2, 3.2, 5, 8, 14, 30, 80],
    ]
).tolist()
ALPHAS_BETAS = tuple(itertools.product((-0.5, 0.1, 0.5, 1, 2.5), (-0.5, 0.05, 0.3, 0.7, 1.5, 5)))
_FIRST_ROUND, _FINALISTS, _FINAL_ROUND = 8, 8, 60
BEST = 3
_MAX_STEP = 3.0
_CONVERGED = 1e-9  # relative gain of a step
_STUCK = 1e12  # damping
_LOWER = {count: np.tril_indices(count, -1) for count in (4, 5)}
_CONSTANT = 1e-4  # P that varies by less than this, relatively, tells nothing of alpha


@dataclass(frozen=True)
class Curves:
    """A set of n loss curves of m points; where a point is not used, all its values are 0.

    Attributes:
        y: Losses [n, m].
        used: 1 or 0 [n, m].
        log_t: log(T / final T) [n, m].
        log_p: log(P / final P) [n, m]; 0 for a curve along which P is constant.
    """

    y: FloatArray
    used: FloatArray
    log_t: FloatArray
    log_p: FloatArray

    @classmethod
    def of(cls, y: FloatArray, used: BoolArray, log_t: FloatArray, log_p: FloatArray) -> "Curves":
        """Make curves of the points that are used; a P that is constant along them is left out."""
        log_p = np.where(used & varies(log_p, used)[:, None], log_p, 0)
        return cls(np.where(used, y, 0), used.astype(float), np.where(used, log_t, 0), log_p)

    @property
    def count(self) -> FloatArray:
        """Points of each curve [n]."""
        total: FloatArray = self.used.sum(axis=1)
        return total

    @property
    def with_p(self) -> BoolArray:
        """Along which curves P varies [n]."""
        return np.asarray(self.log_p.any(axis=1))

    @property
    def mixed(self) -> tuple[int, ...]:
        """Over which columns of theta an interval is mixed."""
        return (BETA, ALPHA) if self.with_p.any() else (BETA,)

    def take(self, rows: IndexArray) -> "Curves":
        """Some of the curves, in this order."""
        return Curves(self.y[rows], self.used[rows], self.log_t[rows], self.log_p[rows])

    def since(self, first: IndexArray) -> "Curves":
        """Only the points from index `first` [n] on."""
        kept = (np.arange(self.y.shape[1]) >= first[:, None]) & (self.used > 0)
        return Curves.of(self.y, kept, self.log_t, self.log_p)

    def regressors(self, theta: FloatArray) -> dict[int, FloatArray]:  # noqa: ARG002
        """The x [n, m] of columns i of theta in `d falling = -x * falling * d theta[:, i]`."""
        return {ALPHA: self.log_p, BETA: self.log_t} if self.with_p.any() else {BETA: self.log_t}

    def exponents(self, nodes: FloatArray) -> FloatArray:
        """The logarithm [n, k, m] of the falling part over that at the end, for nodes [n, k, d].

        A node has a value for each of `mixed`, beta's in its logarithm.
        """
        exponents = -np.exp(nodes[:, :, :1]) * self.log_t[:, None]
        if nodes.shape[2] > 1:
            exponents = exponents - nodes[:, :, 1:] * self.log_p[:, None]
        return exponents

    def settled(self, theta: FloatArray, residual: FloatArray) -> FloatArray:  # noqa: ARG002
        """Parameters for those that a step from where these are the residuals has led to."""
        return theta

    def log_amounts(self, theta: FloatArray) -> FloatArray:  # noqa: ARG002
        """The logarithm [n, m] of what `-beta` is the exponent of."""
        return self.log_t

    def terms(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The falling part [n, m] and the irreducible part [n, 1] of the losses."""
        a, e, alpha, beta = (theta[:, i, None] for i in range(4))
        exponent = self.log_amounts(theta) * -beta
        exponent += a
        if self.log_p.any():
            exponent -= alpha * self.log_p
        np.clip(exponent, -300, 100, out=exponent)
        np.exp(exponent, out=exponent)
        exponent *= self.used
        return exponent, np.exp(e)

    def residual(self, theta: FloatArray) -> FloatArray:
        """Fitted less seen losses [n, m] for theta = (log A, log E, alpha, beta) [n, 4]."""
        falling, irreducible = self.terms(theta)
        return falling + (irreducible - self.y) * self.used

    def huber(self, residual: FloatArray) -> FloatArray:
        """Mean Huber loss [n] of residuals [n, m] that are 0 where unused."""
        size = np.abs(residual)
        inside = np.minimum(size, HUBER_DELTA)
        size -= 0.5 * inside
        mean: FloatArray = dot(inside, size) / self.count
        return mean


@dataclass(frozen=True)
class Fits:
    """Fits of n curves, T and P relative to their final values.

    Attributes:
        end: Loss at the end [n], the mean over the three best fits.
        objective: Mean Huber loss of the best [n].
        theta: log A, log E, alpha, beta, log of the warm start (-inf without one) of the best
            [n, 5].
        best: The same of the three best [n, 3, 5].
    """

    end: FloatArray
    objective: FloatArray
    theta: FloatArray
    best: FloatArray

    @classmethod
    def empty(cls, n: int) -> "Fits":
        """Make room for the fits of n curves."""
        return cls(np.empty(n), np.empty(n), np.empty((n, 5)), np.empty((n, BEST, 5)))

    def replace(self, rows: IndexArray, new: "Fits") -> None:
        """Take over other fits in some of the rows."""
        for name in ("end", "objective", "theta", "best"):
            getattr(self, name)[rows] = getattr(new, name)


def varies(x: FloatArray, used: BoolArray) -> BoolArray:
    """Tell for each curve whether logarithms [n, m] differ among the points used [n]."""
    high = np.where(used, x, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(used, x, np.inf).min(axis=1, initial=np.inf)
    return np.asarray(high - low > _CONSTANT)


def fit_curves(curves: Curves) -> Fits:
    """Fit each curve from all starts; NaN where no fit is finite.

    P must vary along all of them or along none.
    """
    n = len(curves.y)
    mean_t = curves.log_t.sum(axis=1, keepdims=True) / curves.count[:, None]
    mean_p = curves.log_p.sum(axis=1, keepdims=True) / curves.count[:, None]
    centred = Curves(
        curves.y,
        curves.used,
        (curves.log_t - mean_t) * curves.used,
        (curves.log_p - mean_p) * curves.used,
    )
    grid = ALPHAS_BETAS if curves.with_p.any() else tuple((0.0, b) for b in _BETAS)
    k = len(grid)
    domain = np.repeat(np.arange(n), k)
    exponents = np.tile(np.array(grid), (n, 1))
    every = centred.take(domain)
    theta, objective = refine(every, linear_starts(every, exponents), _FIRST_ROUND)
    order = np.argsort(np.where(np.isfinite(objective), objective, np.inf).reshape(n, k), axis=1)
    chosen = (np.arange(n)[:, None] * k + order[:, :_FINALISTS]).ravel()
    domain = domain[chosen]
    theta, objective = refine(centred.take(domain), theta[chosen], _FINAL_ROUND)
    theta[:, 0] += theta[:, 2] * mean_p[domain, 0] + theta[:, 3] * mean_t[domain, 0]
    theta = np.column_stack([theta, np.full(len(theta), -np.inf)])
    return best_of(theta.reshape(n, -1, 5), objective.reshape(n, -1))


def best_of(theta: FloatArray, objective: FloatArray) -> Fits:
    """Choose among several fits per curve, theta [n, k, 5] and objective [n, k]."""
    end = np.exp(theta[:, :, 0]) + np.exp(theta[:, :, 1])
    objective = np.where(np.isfinite(end) & np.isfinite(objective), objective, np.inf)
    order = np.argsort(objective, axis=1, kind="stable")[:, :BEST]
    objective = np.take_along_axis(objective, order, axis=1)
    end = np.take_along_axis(end, order, axis=1)
    finite = np.isfinite(objective)
    mean_end = np.sum(np.where(finite, end, 0), axis=1) / finite.sum(axis=1)
    best = np.take_along_axis(theta, order[:, :, None], axis=1)
    best[~finite] = np.nan
    lost = ~finite[:, 0]
    mean_end[lost], objective[lost] = np.nan, np.nan
    return Fits(mean_end, objective[:, 0], best[:, 0].copy(), best)


def linear_starts(curves: Curves, exponents: FloatArray) -> FloatArray:
    """Find for each pair (alpha, beta) [b, 2] the A and E that fit best, kept positive."""
    alpha, beta = exponents[:, 0, None], exponents[:, 1, None]
    exponent = -alpha * curves.log_p - beta * curves.log_t
    top = np.where(curves.used > 0, exponent, -np.inf).max(axis=1, keepdims=True)
    x = np.exp(exponent - top) * curves.used
    x_mean, y_mean = x.sum(axis=1) / curves.count, curves.y.sum(axis=1) / curves.count
    xc = (x - x_mean[:, None]) * curves.used
    slope = np.sum(xc * curves.y, axis=1) / np.maximum(np.sum(xc * xc, axis=1), 1e-30)
    scale = np.maximum(np.abs(y_mean), 1e-6)
    slope = np.clip(slope, 1e-6 * scale, scale / x_mean)
    irreducible = np.maximum(y_mean - slope * x_mean, 1e-6 * scale)
    return np.column_stack([np.log(slope) - top[:, 0], np.log(irreducible), exponents])


def refine(curves: Curves, theta: FloatArray, iterations: int) -> tuple[FloatArray, FloatArray]:
    """Improve fits by damped Gauss-Newton steps; returns theta [b, 4 or 5] and Huber loss [b]."""
    found = theta.copy()
    reached = np.empty(len(theta))
    active = np.arange(len(theta))
    current = _Point.at(curves, theta)
    damping = np.ones(len(theta))
    for _ in range(iterations):
        step = np.clip(_step(current, damping), -_MAX_STEP, _MAX_STEP)
        trial = _Point.at(
            current.curves, current.curves.settled(current.theta - step, current.residual)
        )
        gain = current.objective - trial.objective
        better = gain > 0
        done = better & (gain <= _CONVERGED * trial.objective)
        current.replace(better, trial)
        damping = np.clip(damping * np.where(better, 0.25, 6), 1e-8, _STUCK)
        done |= damping >= _STUCK
        if done.any():
            index = active[done]
            found[index], reached[index] = current.theta[done], current.objective[done]
            rest = np.flatnonzero(~done)
            active, damping, current = active[rest], damping[rest], current.take(rest)
            if not len(active):
                break
    found[active], reached[active] = current.theta, current.objective
    return found, reached


@dataclass(frozen=True)
class _Point:
    """The state of b fits: theta [b, 4 or 5], falling part and residual [b, m], objective [b]."""

    curves: Curves
    theta: FloatArray
    falling: FloatArray
    residual: FloatArray
    objective: FloatArray

    @classmethod
    def at(cls, curves: Curves, theta: FloatArray) -> "_Point":
        falling, irreducible = curves.terms(theta)
        residual = irreducible * curves.used
        residual -= curves.y
        residual += falling
        return cls(curves, theta, falling, residual, curves.huber(residual))

    def replace(self, rows: BoolArray, other: "_Point") -> None:
        """Take over another point's values in some of the rows."""
        for name in ("theta", "falling", "residual", "objective"):
            getattr(self, name)[rows] = getattr(other, name)[rows]

    def take(self, rows: IndexArray) -> "_Point":
        """Some of the rows."""
        arrays = (self.theta, self.falling, self.residual, self.objective)
        return _Point(self.curves.take(rows), *(array[rows] for array in arrays))


def _step(point: _Point, damping: FloatArray) -> FloatArray:
    """Compute the damped Gauss-Newton step [b, 4 or 5] against the gradient.

    The slopes of the residual are `falling` times 1, -log P and -log T, and the irreducible part;
    the sums over points that gradient and Hessian need are taken one by one, which for so few
    points is several times faster than products of stacked matrices.
    """
    curves, falling = point.curves, point.falling
    irreducible = np.exp(point.theta[:, 1])
    pull = np.clip(point.residual, -HUBER_DELTA, HUBER_DELTA)
    size = np.abs(point.residual)
    bend = HUBER_DELTA / np.maximum(size, HUBER_DELTA)
    bend *= damping[:, None]
    bend += size <= HUBER_DELTA
    once = bend * falling
    twice = once * falling
    pulled = pull * falling

    count = point.theta.shape[1]
    gradient = np.zeros((len(damping), count))
    hessian = np.zeros((len(damping), count, count))
    gradient[:, 0] = pulled.sum(axis=1)
    gradient[:, 1] = irreducible * dot(pull, curves.used)
    hessian[:, 0, 0] = twice.sum(axis=1)
    hessian[:, 0, 1] = irreducible * once.sum(axis=1)
    hessian[:, 1, 1] = irreducible**2 * dot(bend, curves.used)
    slopes = curves.regressors(point.theta)
    for i, x in slopes.items():
        gradient[:, i] = -dot(pulled, x)
        hessian[:, 0, i] = -dot(twice, x)
        hessian[:, 1, i] = -irreducible * dot(once, x)
        for j, other in slopes.items():
            if j <= i:
                hessian[:, j, i] = dot(twice, x * other)
    lower = _LOWER[count]
    hessian[:, lower[0], lower[1]] = hessian[:, lower[1], lower[0]]
    diagonal = np.arange(count)
    scale = hessian[:, diagonal, diagonal]
    hessian[:, diagonal, diagonal] += 1e-3 * damping[:, None] * scale + 1e-12 * scale + 1e-100
    return np.asarray(np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], dtype=np.float64)


def dot(x: FloatArray, y: FloatArray) -> FloatArray:
    """Sums over points [b] of the products of two [b, m]."""
    return np.asarray(np.einsum("bm,bm->b", x, y))
