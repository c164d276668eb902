"""Fits of `A * P**-alpha * (x + x0)**-beta + E`: curves that do not start from nothing.

A model that is trained further knows something of a domain already, as if it had read x0 of it
before. Without x0 the law diverges at 0, and a fit to the first evaluations, which fall less than
it says, takes too small an exponent for the rest. x0 is a parameter like the others, in its
logarithm; the fits start from a grid of it, each with the exponents that then fit best.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drpruning.scheduling.curve_fit import (
    ALPHA,
    ALPHAS_BETAS,
    BETA,
    HUBER_DELTA,
    LOG_OFFSETS,
    OFFSET,
    BoolArray,
    Curves,
    Fits,
    FloatArray,
    IndexArray,
    best_of,
    dot,
    linear_starts,
    refine,
)

_NODES = 16
_BETAS = tuple((0.0, b) for b in (-1, -0.2, 0.03, 0.12, 0.25, 0.4, 0.6, 0.9, 1.4, 2.5, 5, 20))
_FINALISTS, _ROUND = 5, 30


@dataclass(frozen=True)
class WarmCurves(Curves):
    """Loss curves against amounts to which an unknown warm start is added.

    `log_t` is not used; theta has a fifth column, log x0.

    Attributes:
        x: Amounts, in units of their extent, [n, m].
        base: The amount [n], in the same unit, at which A is the falling part.
    """

    x: FloatArray
    base: FloatArray

    @classmethod
    def among(
        cls, y: FloatArray, used: BoolArray, x: FloatArray, base: FloatArray, log_p: FloatArray
    ) -> "WarmCurves":
        """Make curves of the points that are used."""
        plain = Curves.of(y, used, np.zeros_like(y), log_p)
        return cls(plain.y, plain.used, plain.log_t, plain.log_p, np.where(used, x, 0), base)

    @property
    def mixed(self) -> tuple[int, ...]:
        """Over which columns of theta an interval is mixed."""
        return (BETA, OFFSET, ALPHA) if self.with_p.any() else (BETA, OFFSET)

    def take(self, rows: IndexArray) -> "WarmCurves":
        """Some of the curves, in this order."""
        plain = super().take(rows)
        arrays = (plain.y, plain.used, plain.log_t, plain.log_p)
        return WarmCurves(*arrays, self.x[rows], self.base[rows])

    def since(self, first: IndexArray) -> "WarmCurves":
        """Only the points from index `first` [n] on."""
        kept = super().since(first)
        return WarmCurves.among(self.y, kept.used > 0, self.x, self.base, self.log_p)

    def from_offset(self, log_offset: FloatArray) -> Curves:
        """The curves for a known warm start [n]."""
        return Curves(self.y, self.used, self._log_amounts(log_offset) * self.used, self.log_p)

    def settled(self, theta: FloatArray, residual: FloatArray) -> FloatArray:
        """Keep x0 within its bounds, and give A and E the values that then fit best.

        A step along the valley of beta and x0 would otherwise have to be short, as A and E follow
        them on a curve.
        """
        theta[:, OFFSET] = np.clip(theta[:, OFFSET], *LOG_OFFSETS)
        falling, _ = self.terms(theta)
        weight = self.used * HUBER_DELTA / np.maximum(np.abs(residual), HUBER_DELTA)
        total = weight.sum(axis=1)
        x_mean, y_mean = dot(weight, falling) / total, dot(weight, self.y) / total
        xc = (falling - x_mean[:, None]) * weight
        slope = dot(xc, self.y) / np.maximum(dot(xc, falling), 1e-300)
        small = 1e-9 * np.abs(y_mean)
        slope = np.clip(slope, small / x_mean, (y_mean - small) / x_mean)
        theta[:, 0] += np.log(slope)
        theta[:, 1] = np.log(np.maximum(y_mean - slope * x_mean, small))
        return theta

    def log_amounts(self, theta: FloatArray) -> FloatArray:
        """The logarithm [n, m] of what `-beta` is the exponent of."""
        return self._log_amounts(theta[:, OFFSET])

    def regressors(self, theta: FloatArray) -> dict[int, FloatArray]:
        """The x [n, m] of columns i of theta in `d falling = -x * falling * d theta[:, i]`."""
        beta, log_offset = theta[:, BETA, None], theta[:, OFFSET, None]
        offset = np.exp(log_offset)
        share = offset / (self.x + offset) - offset / (self.base[:, None] + offset)
        free = (log_offset > LOG_OFFSETS[0]) & (log_offset < LOG_OFFSETS[1])
        slopes = {BETA: self.log_amounts(theta), OFFSET: beta * share * free}
        return {ALPHA: self.log_p} | slopes if self.with_p.any() else slopes

    def exponents(self, nodes: FloatArray) -> FloatArray:
        """The logarithm [n, k, m] of the falling part over that at the end, for nodes [n, k, d]."""
        offset = np.exp(nodes[:, :, 1:2])
        log_ratio = np.log((self.x[:, None] + offset) / (self.base[:, None, None] + offset))
        exponents: FloatArray = -np.exp(nodes[:, :, :1]) * log_ratio
        if nodes.shape[2] > 2:
            exponents -= nodes[:, :, 2:] * self.log_p[:, None]
        return exponents

    def _log_amounts(self, log_offset: FloatArray) -> FloatArray:
        offset = np.exp(log_offset)[:, None]
        log_ratio: FloatArray = np.log((self.x + offset) / (self.base[:, None] + offset))
        return log_ratio


def fit_warm_curves(curves: WarmCurves) -> Fits:
    """Fit each curve from the best starts; NaN where no fit is finite.

    P must vary along all of them or along none.
    """
    n = len(curves.y)
    mean_p = curves.log_p.sum(axis=1, keepdims=True) / curves.count[:, None]
    log_p = (curves.log_p - mean_p) * curves.used
    middle = curves.x.sum(axis=1) / curves.count
    centred = WarmCurves(curves.y, curves.used, curves.log_t, log_p, curves.x, middle)
    domain = np.repeat(np.arange(n), _FINALISTS)
    theta, objective = refine(centred.take(domain), _starts(centred), _ROUND)
    offset = np.exp(theta[:, OFFSET])
    end = np.log((curves.base[domain] + offset) / (middle[domain] + offset))
    theta[:, 0] += theta[:, 2] * mean_p[domain, 0] - theta[:, 3] * end
    return best_of(theta.reshape(n, _FINALISTS, 5), objective.reshape(n, _FINALISTS))


def _starts(curves: WarmCurves) -> npt.NDArray[np.float64]:
    """Find the best few warm starts of a grid, each with its best exponents: [n * k, 5]."""
    n = len(curves.y)
    grid = np.array(ALPHAS_BETAS if curves.with_p.any() else _BETAS)
    offsets = np.linspace(*LOG_OFFSETS, _NODES)
    domain = np.repeat(np.arange(n), _NODES)
    log_offset = np.tile(offsets, n)
    warm = curves.take(domain)
    rows = np.repeat(np.arange(len(domain)), len(grid))
    every = warm.from_offset(log_offset).take(rows)
    theta = linear_starts(every, np.tile(grid, (len(domain), 1)))
    objective = every.huber(every.residual(theta))
    objective = np.where(np.isfinite(objective), objective, np.inf).reshape(n, _NODES, len(grid))
    theta = np.column_stack([theta, log_offset[rows]]).reshape(n, _NODES, len(grid), 5)
    best = objective.argmin(axis=2)
    theta = np.take_along_axis(theta, best[:, :, None, None], axis=2)[:, :, 0]
    order = np.argsort(objective.min(axis=2), axis=1, kind="stable")[:, :_FINALISTS]
    return np.take_along_axis(theta, order[:, :, None], axis=1).reshape(-1, 5)
