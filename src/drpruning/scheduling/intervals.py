"""Intervals for the loss at the end of training, which say how reliable a forecast is.

For given exponents and warm start the curve `A * P**-alpha * (x + x0)**-beta + E` is a straight
line in its falling part, so the loss at its end has a Student distribution (flat prior on that loss
and on the observed fall, Gaussian noise of unknown size). The interval is taken from the mixture of
these over the exponents and the warm start, each weighted by how well it explains the points, with
a flat prior on alpha, log beta and log x0 in a wide box, and with A and E kept positive. They are
laid out where the weight is: nodes that follow mean and covariance of the weights in a few rounds.

With a warm start, exponents and x0 that fit equally well end far apart, and the best of them is a
poor forecast: the middle of the interval has errors that are smaller by up to a quarter.

Two deviations from a power law with independent noise are allowed for: outliers count less, and
points with correlated residuals count as fewer.
"""

from functools import cache

import numpy as np

from drpruning.scheduling.curve_fit import (
    ALPHA,
    BETA,
    LOG_OFFSETS,
    OFFSET,
    BoolArray,
    Curves,
    FloatArray,
)

LEVEL = 0.9
# Of what is mixed over, by column of theta, beta in its logarithm.
_BOX = {BETA: (np.log(0.02), np.log(6.0)), ALPHA: (-0.25, 2.5), OFFSET: LOG_OFFSETS}
_ROUNDS = 5
_REACH = 4.5  # of the grid, in standard deviations
_COARSE, _FINE = (21, 13, 400), (33, 15, 700)  # nodes on a side in 1 and 2 dimensions, of all in 3
_WIDER = 1.5  # are the draws in three dimensions than the weights, whose tails they must reach
# Degrees of freedom taken by the line and by what is mixed over, so that coverage is right.
_FITTED = {(BETA,): 2.5, (BETA, ALPHA): 3.4, (BETA, OFFSET): 2.8, (BETA, OFFSET, ALPHA): 4.4}
_DRAWS = 32
_SPREAD = (0.7548776662466927, 0.5698402909980532)  # 1/g and 1/g**2 for g**3 = g + 1
_SPREAD_3 = 1.2207440846057596 ** -np.arange(1.0, 4.0)  # the same for g**4 = g + 1
_OUTLIER = 3.0
_REGULAR = 0.7  # of the weight must stay, or what was taken for outliers is the noise
_ENOUGH_TO_JUDGE = 8  # points of which some may be outliers
_SMALLEST_NOISE = 1e-6  # relative to the losses


def end_intervals(curves: Curves, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute quantiles of the noise-free loss at the end, and laws that end in the middle.

    Args:
        curves: n curves, with the points to use.
        theta: Their best fits [n, 5].

    Returns:
        The quantiles 5%, 50% and 95% [n, 3]; and, for curves with a warm start, the laws [n, 5]
        that fit best of those that end at the middle one, otherwise `theta`.
    """
    residual = curves.residual(theta)
    weight = _weights(curves, residual)
    box = np.array([_BOX[column] for column in curves.mixed]).T
    coarse, rare, spacing = _layout(len(curves.mixed), _COARSE)
    centre, root = _around_best(curves, weight, theta, residual, box)
    for _ in range(_ROUNDS):
        nodes = centre[:, None] + coarse @ root.transpose(0, 2, 1)
        mass = _mass(_Lines(curves, weight, nodes), nodes, rare, box)
        mass /= mass.sum(axis=1, keepdims=True)
        centre = np.sum(mass[:, :, None] * nodes, axis=1)
        apart = nodes - centre[:, None]
        spread = np.einsum("nk,nki,nkj->nij", mass, apart, apart)
        cell = root * spacing / 2  # with all mass on one node, the rest is in its cell
        root = np.linalg.cholesky(spread + cell @ cell.transpose(0, 2, 1))
    fine, rare, _ = _layout(len(curves.mixed), _FINE)
    nodes = centre[:, None] + fine @ root.transpose(0, 2, 1)
    lines = _Lines(curves, weight, nodes)
    mass = _mass(lines, nodes, rare, box)
    quantiles = lines.end_quantiles(mass)
    if OFFSET in curves.mixed:
        theta = lines.laws_through(quantiles[:, 1:2], nodes, mass > 0)
    return quantiles, theta


@cache
def _layout(dims: int, sizes: tuple[int, ...]) -> tuple[FloatArray, FloatArray | float, float]:
    """Lay out nodes [k, dims] in standard deviations.

    A grid in one or two dimensions; in three it would need too many nodes, so there they are
    quasi-random draws from a Gaussian that is wider than the weights.

    Returns:
        The nodes, the logarithm of how rare they are, by which a node weighs more [k], and their
        spacing.
    """
    from scipy.special import ndtri

    size = sizes[dims - 1]
    if dims < 3:
        axis = np.linspace(-_REACH, _REACH, size)
        nodes = np.stack(np.meshgrid(*[axis] * dims, indexing="ij"), axis=-1).reshape(-1, dims)
        return nodes, 0.0, float(axis[1] - axis[0])
    draws = ndtri(np.mod(0.5 + np.arange(size)[:, None] * _SPREAD_3, 1.0))
    return _WIDER * draws, 0.5 * np.sum(draws**2, axis=1), _WIDER / 2


def _mass(
    lines: "_Lines", nodes: FloatArray, rare: FloatArray | float, box: FloatArray
) -> FloatArray:
    """Compute the weight of each node [n, k], at most 1, and 0 outside the box."""
    inside = np.all((nodes >= box[0]) & (nodes <= box[1]), axis=2)
    log_mass = np.where(inside, lines.log_mass + rare, -np.inf)
    mass: FloatArray = np.exp(log_mass - log_mass.max(axis=1, keepdims=True))
    return mass


def _around_best(
    curves: Curves, weight: FloatArray, theta: FloatArray, residual: FloatArray, box: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Place the first grid: centre [n, d] and Cholesky factor [n, d, d] in what is mixed over."""
    beta = np.clip(theta[:, BETA, None], *np.exp(_BOX[BETA]))
    falling, irreducible = curves.terms(theta)
    x = curves.regressors(theta)
    slopes = [-falling * x[c] * (beta if c == BETA else 1.0) for c in curves.mixed]
    jacobian = np.stack([falling, irreducible * curves.used, *slopes], axis=1)
    noise = np.sum(weight * residual**2, axis=1) / np.maximum(weight.sum(axis=1) - 2, 1)
    noise = np.maximum(noise, (_SMALLEST_NOISE * curves.y.max(axis=1)) ** 2)
    precision = (jacobian * weight[:, None]) @ jacobian.transpose(0, 2, 1) / noise[:, None, None]
    width = np.array([10.0, 10.0, *((box[1] - box[0]) / 4)])
    precision += np.diag(width**-2)
    covariance = np.linalg.inv(precision)[:, 2:, 2:]
    centre = np.column_stack([np.log(beta), theta[:, curves.mixed[1:]]])
    return np.clip(centre, *box), np.linalg.cholesky(covariance)


def _weights(curves: Curves, residual: FloatArray) -> FloatArray:
    """Weigh the points [n, m]: outliers less, and all less where residuals are correlated."""
    size = np.where(curves.used > 0, np.abs(residual), np.nan)
    count = curves.count[:, None]
    noise = np.nanmedian(size, axis=1, keepdims=True) / 0.6745 * np.sqrt(count / (count - 3))
    smallest = _SMALLEST_NOISE * np.abs(curves.y).max(axis=1, keepdims=True)
    noise = np.maximum(noise, smallest)
    least = np.where(count < _ENOUGH_TO_JUDGE, np.inf, _OUTLIER * noise)
    weight: FloatArray = np.where(size > least, (least / size) ** 2, curves.used)
    rare = weight.sum(axis=1) >= _REGULAR * curves.count
    weight = np.where(rare[:, None], weight, curves.used)
    r = np.sqrt(weight) * residual
    # Rounding errors are correlated too: residuals this small say nothing.
    judged = curves.count * smallest[:, 0] ** 2 if OFFSET in curves.mixed else 1e-300
    correlation = np.sum(r[:, 1:] * r[:, :-1], axis=1) / np.maximum(np.sum(r * r, axis=1), judged)
    kept = np.clip(correlation, 0, 0.9)
    weight *= ((1 - kept) / (1 + kept))[:, None]
    return weight


class _Lines:
    """Weighted least squares lines `y = end + fall * x` for each node of exponents [n, k]."""

    def __init__(self, curves: Curves, weight: FloatArray, nodes: FloatArray) -> None:
        x = np.expm1(curves.exponents(nodes)) * curves.used[:, None]
        self.scale = np.abs(x).max(axis=2)
        x /= self.scale[:, :, None]
        self.total = weight.sum(axis=1)[:, None]
        self.x_mean = np.einsum("nkm,nm->nk", x, weight) / self.total
        self.y_mean = np.sum(curves.y * weight, axis=1, keepdims=True) / self.total
        x -= self.x_mean[:, :, None]
        xw, y = x * weight[:, None], curves.y - self.y_mean
        self.xx = np.maximum(np.einsum("nkm,nkm->nk", xw, x), 1e-30)
        self.xy = xy = (xw @ y[:, :, None])[:, :, 0]
        self.fall = xy / self.xx
        kept = np.maximum(self.fall, 0)
        self.yy = np.sum(weight * y * y, axis=1, keepdims=True)
        errors = self.yy - kept * (2 * xy - kept * self.xx)
        smallest = (_SMALLEST_NOISE * self.y_mean) ** 2 * self.total
        self.errors = np.maximum(errors, smallest)
        self.freedom = np.maximum(self.total - _FITTED[curves.mixed], 1)
        self.log_mass = -0.5 * self.freedom * np.log(self.errors) - 0.5 * np.log(self.xx)

    def laws_through(self, end: FloatArray, nodes: FloatArray, valid: BoolArray) -> FloatArray:
        """Find the law [n, 5] with this loss at the end [n, 1] that fits best, for valid nodes."""
        apart = self.y_mean - end
        xx = self.xx + self.total * self.x_mean**2
        xy = self.xy + self.total * self.x_mean * apart
        fall = np.clip(xy / xx, 0, end * self.scale * (1 - _SMALLEST_NOISE))
        errors = self.yy + self.total * apart**2 - fall * (2 * xy - fall * xx)
        best = np.where(valid, errors, np.inf).argmin(axis=1)[:, None]
        node = np.take_along_axis(nodes, best[:, :, None], axis=1)[:, 0]
        A = np.take_along_axis(fall / self.scale, best, axis=1)
        alpha = node[:, 2:] if node.shape[1] > 2 else np.zeros_like(A)
        columns = [np.log(A), np.log(end - A), alpha, np.exp(node[:, :1]), node[:, 1:2]]
        return np.concatenate(columns, axis=1)

    def end_quantiles(self, mass: FloatArray) -> FloatArray:
        """Compute the quantiles [n, 3] of the loss at the end, for nodes of this mass [n, k]."""
        first, second, chi = _draws(mass.shape[1], self.freedom)
        noise = np.sqrt(self.errors[:, :, None] / chi[:, None])
        fall = self.fall[:, :, None] + noise / np.sqrt(self.xx)[:, :, None] * first
        level = self.y_mean[:, :, None] + noise / np.sqrt(self.total)[:, :, None] * second
        end = level - fall * self.x_mean[:, :, None]
        possible = (fall >= 0) & (end >= fall / self.scale[:, :, None])
        n = len(mass)
        weight = (mass[:, :, None] * np.where(possible, 1.0, 1e-9)).reshape(n, -1)
        end = end.reshape(n, -1)
        order = np.argsort(end, axis=1)
        end = np.take_along_axis(end, order, axis=1)
        share = np.cumsum(np.take_along_axis(weight, order, axis=1), axis=1)
        share /= share[:, -1:]
        wanted = ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)
        return np.array([np.interp(wanted, s, e) for s, e in zip(share, end, strict=True)])


def _draws(nodes: int, freedom: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Make quasi-random draws, always the same: normal [nodes, d] twice, chi-square [n, d]."""
    from scipy.special import gammaincinv, ndtri

    draw = np.arange(_DRAWS)
    index = np.arange(nodes)[:, None] * _DRAWS + draw
    first, second = (ndtri(np.mod(0.5 + ratio * index, 1.0)) for ratio in _SPREAD)
    return first, second, 2 * gammaincinv(freedom / 2, (draw + 0.5) / _DRAWS)
