"""The scaling law over model sizes, which gives the loss that a model of another size should reach.

Sheared LLaMA (arXiv 2310.06694, section 2.2) takes its reference losses from it: the losses of
several sizes of the source family on a domain give `loss(N) = a / N**b + c`, read off at the
target's size N. The form is that of Hoffmann et al. 2022 (arXiv 2203.15556, Eq. 2) for a fixed
amount of data.

For a given exponent the best `a` and `c` are a linear problem with a closed form, so what is left
is a search over the exponent alone (variable projection): a grid, then bisection of the derivative.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drpruning.scheduling.worst_case import FloatArray

MIN_SIZES = 3
"""The number of sizes that a law with three parameters needs."""
_GRID = 240
_SMALLEST_FALL = 1e-6  # exponents as the logarithm of N**b between smallest and largest size
_LARGEST_LOG = 600.0  # of N**b, so that `a` stays a float64
_BISECTIONS = 60


@dataclass(frozen=True)
class SizeLaw:
    """The laws `a / N**b + c` of n domains: `a` [n] >= 0 and `c` [n] >= 0 in nats, `b` [n] > 0."""

    a: FloatArray
    b: FloatArray
    c: FloatArray

    def largest_miss(self, params: npt.ArrayLike, losses: npt.ArrayLike) -> float:
        """Compute the largest distance, in nats, from losses [n, k] of models of sizes [k]."""
        laws = [self.loss_at(size) for size in np.asarray(params, dtype=np.float64)]
        return float(np.abs(np.column_stack(laws) - np.asarray(losses)).max())

    def loss_at(self, params: float) -> FloatArray:
        """Predict the loss of each domain [n], in nats, at this number of parameters.

        Raises:
            ValueError: If `params` is not positive and finite.
        """
        if not 0 < params < np.inf:
            raise ValueError(f"the number of parameters must be positive, not {params}")
        predicted: FloatArray = self.a * np.exp(-self.b * np.log(params)) + self.c
        return predicted


def first_rise(losses: npt.ArrayLike) -> tuple[int, int] | None:
    """Find where losses do not fall with the size, so that no law over these sizes exists.

    Args:
        losses: Loss of each domain under each model, from the smallest to the largest [n, k].

    Returns:
        The first domain (row), and the model (column) whose loss is not below that of the next
        smaller one; None where all fall.
    """
    rises = np.argwhere(np.diff(np.asarray(losses, dtype=np.float64)) >= 0)
    return (int(rises[0, 0]), int(rises[0, 1]) + 1) if len(rises) else None


def fit_size_law(params: npt.ArrayLike, losses: npt.ArrayLike) -> SizeLaw:
    """Fit `a / N**b + c` to the losses of models of several sizes, by least squares.

    All sizes have the same weight. With three sizes the law goes through all points, if such a law
    exists. Losses that fall ever faster with the logarithm of the size may fit no law with
    `c >= 0`; the best one then has `c = 0`.

    Args:
        params: Number of parameters of each model, all different [k], k at least 3.
        losses: Loss of each domain under each model, in nats [n, k].

    Returns:
        The law of each domain.

    Raises:
        ValueError: If there are fewer than 3 sizes, a size or loss is not positive, or a domain's
            loss does not fall from each size to the next larger one.
    """
    sizes = np.asarray(params, dtype=np.float64)
    values = np.asarray(losses, dtype=np.float64)
    if sizes.ndim != 1 or values.ndim != 2 or values.shape[1:] != sizes.shape:
        raise ValueError(
            f"give one loss per domain and size: params [k] and losses [n, k], not {sizes.shape} "
            f"and {values.shape}"
        )
    if len(sizes) < MIN_SIZES or len(np.unique(sizes)) < len(sizes):
        raise ValueError(f"a law over sizes needs at least {MIN_SIZES} sizes, all different")
    for what, array in (("sizes", sizes), ("losses", values)):
        if not np.all((array > 0) & np.isfinite(array)):
            raise ValueError(f"{what} must be positive and finite")
    order = np.argsort(sizes)
    logs, values = np.log(sizes[order]), values[:, order]
    if (rise := first_rise(values)) is not None:
        raise ValueError(f"the loss does not fall with the size in row {rise[0]}")
    return _fit(logs, values)


def _fit(logs: FloatArray, losses: FloatArray) -> SizeLaw:
    """Fit the laws to logarithms of sizes [k], rising, and losses [n, k], falling."""
    spread = logs[-1] - logs[0]
    place = (logs - logs[0]) / spread  # 0 for the smallest size, 1 for the largest
    largest = _LARGEST_LOG * spread / max(logs[-1], spread)
    falls = np.geomspace(_SMALLEST_FALL, largest, _GRID)
    best = np.argmin([_residuals(np.full(len(losses), f), place, losses)[0] for f in falls], axis=0)
    low, high = falls[np.maximum(best - 1, 0)], falls[np.minimum(best + 1, _GRID - 1)]
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        rises = _residuals(middle, place, losses)[1] > 0
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    fall = np.sqrt(low * high)
    scale, constant = _linear(fall, place, losses)
    b = fall / spread
    return SizeLaw(a=scale * np.exp(b * logs[0]), b=b, c=constant)


def _linear(
    fall: FloatArray, place: FloatArray, losses: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Find the best `scale * exp(-fall * place) + constant`: scale [n], constant [n], both >= 0."""
    drop = np.expm1(-fall[:, None] * place)  # the term less 1, exact for small exponents too
    mean_drop, mean_loss = drop.mean(axis=1), losses.mean(axis=1)
    centred = drop - mean_drop[:, None]
    scale = (centred * losses).sum(axis=1) / (centred**2).sum(axis=1)
    constant = mean_loss - scale * (1 + mean_drop)
    term = 1 + drop
    through_zero = (term * losses).sum(axis=1) / (term**2).sum(axis=1)
    bound = constant < 0
    return np.where(bound, through_zero, scale), np.where(bound, 0.0, constant)


def _residuals(
    fall: FloatArray, place: FloatArray, losses: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Compute the squared error [n] of the best law with these exponents, and its slope's sign."""
    scale, constant = _linear(fall, place, losses)
    term = np.exp(-fall[:, None] * place)
    residual = scale[:, None] * term + constant[:, None] - losses
    # The derivative at the best scale and constant is the partial one (envelope theorem).
    return (residual**2).sum(axis=1), -(residual * place * term).sum(axis=1)
