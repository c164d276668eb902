"""How sure a loss over validation blocks is: bootstrap intervals, and paired differences.

A mean over blocks is an estimate of the loss on such text. Blocks are drawn again with
replacement, within each domain, and the interval is read off the means of these samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr

LEVEL = 0.95
SAMPLES = 2000
"""Draws of a bootstrap; others would move the ends of an interval by some 2% of its width."""
_SEED = 95
_AT_ONCE = 4_000_000
"""Numbers that are drawn at once, at most: 32 MB."""

Pair = tuple[float, float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Domain:
    """What was measured on the blocks of a domain.

    The estimate is the sum of `values` over the sum of `weights`: with weights of 1 the mean.

    Attributes:
        values: One for each block, such as its loss.
        weights: Likewise, such as its bytes.
    """

    values: Array
    weights: Array

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> "Domain":
        """From plain numbers; the weights are 1 where none are given."""
        found = np.asarray(values, dtype=np.float64)
        given = np.ones_like(found) if weights is None else weights
        return cls(found, np.asarray(given, dtype=np.float64))

    @property
    def estimate(self) -> float:
        """The sum of the values over the sum of the weights."""
        return float(self.values.sum() / self.weights.sum())

    @property
    def can_vary(self) -> bool:
        """Whether there are two blocks or more, and all that was measured is finite."""
        finite = np.isfinite(self.values).all() and np.isfinite(self.weights).all()
        return len(self.values) > 1 and bool(finite) and bool(self.weights.sum() > 0)

    def influence(self) -> Array:
        """By how much each block moves the estimate, to first order; they sum to 0."""
        shifted: Array = (self.values - self.estimate * self.weights) / self.weights.sum()
        return shifted

    def resampled(self, generator: np.random.Generator) -> Array:
        """The estimate of each bootstrap sample, float64 [SAMPLES]."""
        count, varied = len(self.values), np.ptp(self.weights) > 0
        rows = max(1, min(SAMPLES, _AT_ONCE // count))
        parts = []
        for first in range(0, SAMPLES, rows):
            drawn = generator.integers(count, size=(min(rows, SAMPLES - first), count))
            weights = self.weights[drawn].sum(axis=1) if varied else self.weights[0] * count
            parts.append(self.values[drawn].sum(axis=1) / weights)
        return np.concatenate(parts)


def bootstrap(domains: Mapping[str, Domain]) -> tuple[dict[str, Pair], Pair | None]:
    """95% bootstrap intervals (bias-corrected and accelerated) over blocks.

    Args:
        domains: What was measured on each.

    Returns:
        Domain -> the interval of its estimate, without domains of one block or with numbers that
        are not finite; and the interval of the mean of the estimates, None unless all have one.
    """
    return _intervals(domains, _resample(domains))


def _resample(domains: Mapping[str, Domain]) -> dict[str, Array]:
    """Bootstrap samples of the domains that can vary: the same in every call, others for each."""
    return {
        name: domain.resampled(np.random.default_rng([_SEED, index]))
        for index, (name, domain) in enumerate(domains.items())
        if domain.can_vary
    }


def _intervals(
    domains: Mapping[str, Domain], samples: Mapping[str, Array]
) -> tuple[dict[str, Pair], Pair | None]:
    each = {
        name: _bca(drawn, domains[name].estimate, domains[name].influence())
        for name, drawn in samples.items()
    }
    if not domains or len(samples) < len(domains):
        return each, None
    count = len(domains)
    mean = math.fsum(domain.estimate for domain in domains.values()) / count
    influence = np.concatenate([domain.influence() / count for domain in domains.values()])
    return each, _bca(np.mean(list(samples.values()), axis=0), mean, influence)


def _bca(samples: Array, estimate: float, influence: Array) -> Pair:
    """The bias-corrected and accelerated interval (Efron 1987).

    Plain percentiles are off where the estimate's own distribution is skewed, as that of block
    losses with a few hard blocks is. z0 says how far the median of the samples is from the
    estimate, the acceleration how much the standard error grows with it.
    """
    square = float(np.square(influence).sum())
    if square <= (1e-14 * max(1.0, abs(estimate))) ** 2:
        return estimate, estimate
    acceleration = float((influence**3).sum()) / (6 * square**1.5)
    apart = samples - estimate
    equal = np.abs(apart) <= 1e-9 * math.sqrt(square)  # of a few blocks many samples are
    share = np.mean(np.where(equal, 0.5, apart < 0))
    shift = ndtri(np.clip(share, 0.5 / len(samples), 1 - 0.5 / len(samples)))
    z = shift + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.quantile(samples, ndtr(shift + z / (1 - acceleration * z)))
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much one model's loss is above another's on the same blocks.

    Attributes:
        nats: The mean difference; negative where the first is better.
        interval: Its 95% bootstrap interval.
        p_bootstrap: Probability of a difference as large where there is none, by paired bootstrap.
        p_t: The same by a paired t-test.
    """

    nats: float
    interval: Pair
    p_bootstrap: float
    p_t: float


def paired_differences(
    one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Difference], Difference | None]:
    """Compare two models block by block, which leaves out how hard the blocks are.

    Args:
        one: Domain -> loss of each block.
        other: The same of the other model, on the same blocks.

    Returns:
        Domain -> difference, for the domains that both have with two blocks or more; and the
        difference of the means over domains, None unless these are all domains of both.
    """
    domains = {
        name: Domain.of(np.subtract(one[name], other[name]))
        for name in one
        if name in other and len(one[name]) == len(other[name])
    }
    usable = {name: domain for name, domain in domains.items() if domain.can_vary}
    samples = _resample(usable)
    intervals, average = _intervals(usable, samples)
    found = {
        name: _difference([domain], samples[name], intervals[name])
        for name, domain in usable.items()
    }
    complete = usable.keys() == one.keys() == other.keys()
    if average is None or not complete:
        return found, None
    mean = np.mean(list(samples.values()), axis=0)
    return found, _difference(list(usable.values()), mean, average)


def _difference(domains: Sequence[Domain], samples: Array, interval: Pair) -> Difference:
    """The mean difference over domains, each of which weighs the same.

    The t-test is Welch's: the variance is the sum over domains of that of their means, with the
    degrees of freedom of Welch and Satterthwaite. For one domain it is the paired t-test.
    """
    nats = math.fsum(domain.estimate for domain in domains) / len(domains)
    counts = np.array([len(domain.values) for domain in domains])
    parts = np.array([domain.values.var(ddof=1) for domain in domains]) / counts
    error = math.sqrt(parts.sum()) / len(domains)
    if error <= 1e-14 * max(1.0, abs(nats)):
        p = 1.0 if nats == 0 else 0.0
        return Difference(nats=nats, interval=interval, p_bootstrap=p, p_t=p)
    freedom = parts.sum() ** 2 / (parts**2 / (counts - 1)).sum()
    as_large = np.sum(np.abs(samples - nats) >= abs(nats))
    return Difference(
        nats=nats,
        interval=interval,
        # 1 added to both: a bootstrap of so many samples cannot say that p is 0.
        p_bootstrap=float((as_large + 1) / (len(samples) + 1)),
        p_t=float(2 * stdtr(freedom, -abs(nats) / error)),
    )
