"""Change points: from which evaluation on a loss curve follows a single law.

A kink (learning that stops), a jump (a restart, another batch size) or a rise (masks that close)
cannot be part of one power law, and a fit to all points then forecasts neither part. This module
finds the longest stretch up to the latest point that one fit describes: none of the tails of the
stretch may be described significantly better by a separate fit.
"""

import itertools

import numpy as np

from drpruning.scheduling.curve_fit import Curves, FloatArray, IndexArray, refine

_BETAS = tuple(np.geomspace(0.03, 10, 24).tolist())
_ALPHAS_BETAS = tuple(itertools.product((0.0, 0.3, 1.0), np.geomspace(0.03, 6, 10).tolist()))
_CANDIDATES = 16
_SHORTEST = 5
_SIGNIFICANT = 20.0  # gain in squared residuals over the noise, for three more parameters
_OUTLIER = 4.0
_ITERATIONS = 25


def first_points(curves: Curves, theta: FloatArray) -> IndexArray:
    """Find the index of the first point to use in each curve [n].

    Args:
        curves: n curves with all their points.
        theta: The best fit of each [n, 4].
    """
    starts, valid = _candidates(curves)
    noise = _noise(curves)
    tails = _tail_errors(curves, starts)
    lengths = _sums_from(curves.used, starts)
    unit = np.maximum(noise[:, None] ** 2, tails / np.maximum(lengths - 3, 1))

    def gains(rows: IndexArray, residual: FloatArray) -> FloatArray:
        """Compute how much better a separate fit describes each tail [rows, k]."""
        bound = _OUTLIER * noise[rows, None]
        errors = _sums_from(np.clip(residual, -bound, bound) ** 2, starts[rows])
        return np.where(valid[rows], (errors - tails[rows]) / unit[rows], -np.inf)

    every = np.arange(len(theta))
    rows = np.flatnonzero(gains(every, curves.residual(theta)).max(axis=1) > _SIGNIFICANT)
    chosen = np.zeros_like(every)
    if len(rows):
        which, begun = np.nonzero(valid[rows])
        stretches = curves.take(rows[which]).since(starts[rows[which], begun])
        fitted = refine(stretches, _least_squares(stretches), _ITERATIONS)[0]
        gain = gains(rows[which], stretches.residual(fitted))
        gain[np.arange(starts.shape[1]) <= begun[:, None]] = -np.inf
        fits = np.zeros((len(rows), starts.shape[1]), dtype=bool)
        fits[which, begun] = gain.max(axis=1) <= _SIGNIFICANT
        chosen[rows] = fits.argmax(axis=1)  # the shortest has no shorter tail, so it always fits
    return np.take_along_axis(starts, chosen[:, None], axis=1)[:, 0]


def _candidates(curves: Curves) -> tuple[IndexArray, np.ndarray]:
    """List indices where a stretch may begin [n, k], evenly spread, and which of them are valid."""
    order = np.cumsum(curves.used, axis=1)
    skipped = np.floor(np.arange(_CANDIDATES) / _CANDIDATES * curves.count[:, None])
    starts = (order[:, None, :] > skipped[:, :, None]).argmax(axis=2)
    distinct = np.diff(skipped, axis=1, prepend=-1) > 0
    return starts, (curves.count[:, None] - skipped >= _SHORTEST) & distinct


def _noise(curves: Curves) -> FloatArray:
    """Estimate the noise's standard deviation [n] from second differences, free of the trend."""
    noise = np.empty(len(curves.y))
    for i, (y, used) in enumerate(zip(curves.y, curves.used, strict=True)):
        bends = np.abs(np.diff(y[used > 0], 2))
        noise[i] = np.median(bends) / (0.6745 * np.sqrt(6)) if len(bends) else 0.0
    smallest: FloatArray = 1e-7 * np.abs(curves.y).max(axis=1)
    return np.maximum(noise, smallest)


def _sums_from(values: FloatArray, starts: IndexArray) -> FloatArray:
    """Sums of values [n, ..., m] from each start [n, k] to the end: [n, ..., k]."""
    sums = np.flip(np.cumsum(np.flip(values, -1), -1), -1)
    if values.ndim == 3:
        starts = np.broadcast_to(starts[:, None], (*values.shape[:2], starts.shape[1]))
    return np.take_along_axis(sums, starts, axis=-1)


def _regressors(curves: Curves) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute falling parts [n, b, m] and scales [n, b, 1] for a grid of exponents [b, 2]."""
    grid = np.array(_ALPHAS_BETAS if curves.with_p.any() else [(0.0, b) for b in _BETAS])
    exponent = -grid[:, :1] * curves.log_p[:, None] - grid[:, 1:] * curves.log_t[:, None]
    falling = np.expm1(exponent) * curves.used[:, None]
    scale = np.abs(falling).max(axis=2, keepdims=True)
    return falling / np.maximum(scale, 1e-30), scale, grid


def _tail_errors(curves: Curves, starts: IndexArray) -> FloatArray:
    """Compute the squared residuals of the best fit to each tail alone [n, k]."""
    x, _, _ = _regressors(curves)
    y = ((curves.y - _last(curves)) * curves.used)[:, None]
    count = _sums_from(curves.used, starts)[:, None]
    sx, sy = _sums_from(x, starts), _sums_from(y, starts)
    xx = _sums_from(x * x, starts) - sx * sx / count
    xy = _sums_from(x * y, starts) - sx * sy / count
    yy = _sums_from(y * y, starts) - sy * sy / count
    errors = yy - xy * xy / np.maximum(xx, 1e-30)
    best: FloatArray = np.maximum(errors.min(axis=1), 0)
    return best


def _last(curves: Curves) -> FloatArray:
    """The latest loss of each curve [n, 1]."""
    latest = curves.y.shape[1] - 1 - np.argmax(np.flip(curves.used, 1), axis=1)
    return np.take_along_axis(curves.y, latest[:, None], axis=1)


def _least_squares(curves: Curves) -> FloatArray:
    """Find the best least squares fit on the grid [n, 4], as a start for `refine`."""
    x, scale, grid = _regressors(curves)
    y = curves.y[:, None]
    count = curves.count[:, None, None]
    x_mean, y_mean = x.sum(axis=2, keepdims=True) / count, y.sum(axis=2, keepdims=True) / count
    xc, yc = (x - x_mean) * curves.used[:, None], (y - y_mean) * curves.used[:, None]
    xx, xy = np.sum(xc * xc, axis=2), np.sum(xc * yc, axis=2)
    slope = np.maximum(xy / np.maximum(xx, 1e-30), 0)
    errors = np.sum(yc * yc, axis=2) - slope * (2 * xy - slope * xx)
    best = errors.argmin(axis=1)
    rows = np.arange(len(best))
    level = np.maximum(np.abs(y_mean[:, 0, 0]), 1e-6)
    end = y_mean[:, 0, 0] - slope[rows, best] * x_mean[rows, best, 0]
    falling = np.clip(slope[rows, best] / scale[rows, best, 0], 1e-6 * level, None)
    irreducible = np.maximum(end - falling, 1e-6 * level)
    return np.column_stack([np.log(falling), np.log(irreducible), grid[best]])
