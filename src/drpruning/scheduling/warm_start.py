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
    ALPHAS_BETAS,
    FINAL_ROUND,
    BoolArray,
    Curves,
    Fits,
    FloatArray,
    IndexArray,
    best_of,
    linear_starts,
    refine,
)

# Of log x0, for amounts in units of their range. Far above, the law is an exponential in x; far
# below, only a point at 0 can tell x0 from 0.
OFFSETS = (float(np.log(1e-4)), float(np.log(10.0)))
_NODES = 14
_BETAS = tuple((0.0, b) for b in (-1, -0.2, 0.03, 0.12, 0.25, 0.4, 0.6, 0.9, 1.4, 2.5, 5, 20))
_FINALISTS = 6


@dataclass(frozen=True)
class WarmCurves(Curves):
    """Loss curves against amounts to which an unknown warm start is added.

    `log_t` is not used; theta has a fifth column, log x0.

    Attributes:
        x: Amounts, in units of their range, [n, m].
        final: The final amount of each curve [n], in the same unit.
    """

    x: FloatArray
    final: FloatArray

    @classmethod
    def among(
        cls, y: FloatArray, used: BoolArray, x: FloatArray, final: FloatArray, log_p: FloatArray
    ) -> "WarmCurves":
        """Make curves of the points that are used."""
        plain = Curves.of(y, used, np.zeros_like(y), log_p)
        return cls(plain.y, plain.used, plain.log_t, plain.log_p, np.where(used, x, 0), final)

    def take(self, rows: IndexArray) -> "WarmCurves":
        """Some of the curves, in this order."""
        plain = super().take(rows)
        arrays = (plain.y, plain.used, plain.log_t, plain.log_p)
        return WarmCurves(*arrays, self.x[rows], self.final[rows])

    def since(self, first: IndexArray) -> "WarmCurves":
        """Only the points from index `first` [n] on."""
        kept = super().since(first)
        return WarmCurves.among(self.y, kept.used > 0, self.x, self.final, self.log_p)

    def from_offset(self, log_offset: FloatArray) -> Curves:
        """The curves for a known warm start [n], amounts relative to the final one."""
        log_t = self._log_ratio(self.final, np.exp(log_offset)) * self.used
        return Curves(self.y, self.used, log_t, self.log_p)

    def bounded(self, theta: FloatArray) -> FloatArray:
        """The nearest parameters that are allowed."""
        theta[:, 4] = np.clip(theta[:, 4], *OFFSETS)
        return theta

    def log_amounts(self, theta: FloatArray) -> FloatArray:
        """Compute log(x + x0), less its value in the middle, so that A hardly depends on x0."""
        return self._log_ratio(self._middle, np.exp(theta[:, 4]))

    def regressors(self, theta: FloatArray) -> dict[int, FloatArray]:
        """The x [n, m] of columns i of theta in `d falling = -x * falling * d theta[:, i]`."""
        beta, log_offset = theta[:, 3, None], theta[:, 4, None]
        offset = np.exp(log_offset)
        share = offset / (self.x + offset) - offset / (self._middle[:, None] + offset)
        free = (log_offset > OFFSETS[0]) & (log_offset < OFFSETS[1])
        slopes = {3: self.log_amounts(theta), 4: beta * share * free}
        return {2: self.log_p} | slopes if self.with_p.any() else slopes

    @property
    def _middle(self) -> FloatArray:
        middle: FloatArray = self.x.sum(axis=1) / self.count
        return middle

    def _log_ratio(self, to: FloatArray, offset: FloatArray) -> FloatArray:
        """log((x + offset) / (to + offset)) [n, m] for `to` and offset [n]."""
        log_ratio: FloatArray = np.log((self.x + offset[:, None]) / (to + offset)[:, None])
        return log_ratio

    def at_end(self, theta: FloatArray) -> FloatArray:
        """The same parameters with A as the falling part at the final amount."""
        moved = theta.copy()
        offset = np.exp(theta[:, 4])
        moved[:, 0] -= theta[:, 3] * np.log((self.final + offset) / (self._middle + offset))
        return moved


def fit_warm_curves(curves: WarmCurves) -> Fits:
    """Fit each curve from the best starts; NaN where no fit is finite.

    P must vary along all of them or along none.
    """
    n = len(curves.y)
    mean_p = curves.log_p.sum(axis=1, keepdims=True) / curves.count[:, None]
    log_p = (curves.log_p - mean_p) * curves.used
    centred = WarmCurves(curves.y, curves.used, curves.log_t, log_p, curves.x, curves.final)
    domain = np.repeat(np.arange(n), _FINALISTS)
    every = centred.take(domain)
    theta, objective = refine(every, _starts(centred), FINAL_ROUND)
    theta = every.at_end(theta)
    theta[:, 0] += theta[:, 2] * mean_p[domain, 0]
    return best_of(theta.reshape(n, _FINALISTS, 5), objective.reshape(n, _FINALISTS))


def _starts(curves: WarmCurves) -> npt.NDArray[np.float64]:
    """Find the best few warm starts of a grid, each with its best exponents: [n * k, 5]."""
    n = len(curves.y)
    grid = np.array(ALPHAS_BETAS if curves.with_p.any() else _BETAS)
    offsets = np.linspace(*OFFSETS, _NODES)
    domain = np.repeat(np.arange(n), _NODES)
    log_offset = np.tile(offsets, n)
    warm = curves.take(domain)
    log_t = warm.log_amounts(np.column_stack([np.zeros((len(domain), 4)), log_offset])) * warm.used
    rows = np.repeat(np.arange(len(domain)), len(grid))
    every = Curves(warm.y, warm.used, log_t, warm.log_p).take(rows)
    theta = linear_starts(every, np.tile(grid, (len(domain), 1)))
    objective = every.huber(every.residual(theta))
    objective = np.where(np.isfinite(objective), objective, np.inf).reshape(n, _NODES, len(grid))
    theta = np.column_stack([theta, log_offset[rows]]).reshape(n, _NODES, len(grid), 5)
    best = objective.argmin(axis=2)
    theta = np.take_along_axis(theta, best[:, :, None, None], axis=2)[:, :, 0]
    order = np.argsort(objective.min(axis=2), axis=1, kind="stable")[:, :_FINALISTS]
    return np.take_along_axis(theta, order[:, :, None], axis=1).reshape(-1, 5)
