"""The worst data ratio near a reference, solved exactly.

DRPruning (arXiv 2411.14055), Eq. 3 and 5: among all ratios within a chi-square ball around a
reference ratio and above a floor, the one with the largest expected score. Eq. 6: a reference
ratio kept within bounds.

The optimum has the form `q_i = max(floor_i, p_i * (1 + u * s_i - nu))`: a tilt `u >= 0`, and an
offset `nu` that makes it sum to 1. For a given tilt, the domains above their floor follow from a
finite sequence of shrinking sets; on such a set the tilt that exhausts the ball has a closed form.
The solver goes from one to the other until they agree.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

_TOLERANCE = 1e-12
_TIE = 1e-15  # scores this close to the best, relative to their range, count as equal to it
_MAX_TILTS = 300


def divergence(ratio: npt.ArrayLike, reference_ratio: npt.ArrayLike) -> float:
    """Chi-square divergence `1/2 * sum_i p_i * (q_i / p_i - 1)**2` of two ratios [n] (Eq. 3)."""
    q = np.asarray(ratio, dtype=np.float64)
    p = np.asarray(reference_ratio, dtype=np.float64)
    return float(0.5 * np.sum((q - p) ** 2 / p))


def worst_case_ratio(
    scores: npt.ArrayLike,
    reference_ratio: npt.ArrayLike,
    rho: float,
    floor: npt.ArrayLike | None = None,
) -> FloatArray:
    """Find the ratio `q` that maximises `sum_i q_i * scores_i` (DRPruning, Eq. 3 and 5).

    Subject to `sum q = 1`, `q_i >= floor_i` and `divergence(q, reference_ratio) <= rho`. Shifting
    all scores, or scaling them by a positive factor, changes nothing. Where several ratios are
    best, the one of smallest divergence is returned; so equal scores give the reference ratio,
    as long as that lies above the floor.

    Args:
        scores: How much each domain needs data, for instance its excess loss [n].
        reference_ratio: Centre of the chi-square ball, positive, sum 1 [n].
        rho: Radius of the ball: the largest divergence allowed, at least 0.
        floor: Smallest share, for all domains or for each one [n]; by default the smallest
            reference share.

    Returns:
        The ratio, float64 [n]; it keeps sum, floor and radius to within 1e-12.

    Raises:
        ValueError: If an argument has a wrong shape or value, or if no ratio satisfies both the
            floor and the ball.
    """
    s = np.array(scores, dtype=np.float64)
    p, f = _checked_reference_and_floor(reference_ratio, floor)
    if s.shape != p.shape or not np.all(np.isfinite(s)):
        raise ValueError(f"scores must be {len(p)} finite numbers, one per domain")
    if not rho >= 0:
        raise ValueError(f"rho must be at least 0, not {rho}")
    with np.errstate(over="ignore"):
        s -= s.max()
        width = -s.min()
    if not np.isfinite(width):
        raise ValueError("the range of the scores exceeds what float64 can hold")

    problem = _Problem(s / width if width > 0 else s, p, f)
    nearest = problem.tilted(0.0).ratio(0.0)
    if (smallest := divergence(nearest, p)) > rho + _TOLERANCE * max(rho, 1.0) / 2:
        raise ValueError(
            f"no ratio is above the floor and within rho = {rho} of the reference ratio: the "
            f"nearest one above the floor has divergence {smallest:.4g}; lower the floor or "
            "raise rho"
        )
    if width == 0 or smallest >= rho:
        return nearest
    extreme = problem.extreme()
    return extreme if divergence(extreme, p) <= rho else problem.on_the_ball(rho)


def nearest_ratio(reference_ratio: npt.ArrayLike, floor: npt.ArrayLike | None = None) -> FloatArray:
    """Find the ratio [n] above the floor with the smallest divergence from the reference ratio.

    Raises:
        ValueError: If an argument has a wrong shape or value, or the floors sum to more than 1.
    """
    p, f = _checked_reference_and_floor(reference_ratio, floor)
    return _Problem(np.zeros_like(p), p, f).tilted(0.0).ratio(0.0)


def project_to_bounds(
    values: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike
) -> FloatArray:
    """Find the nearest point (Euclidean) with `lower <= x <= upper` and `sum x = 1`.

    It has the form `clip(values - tau, lower, upper)`; the sum falls piecewise linearly in `tau`,
    so the right piece is found by a binary search over its ends.

    Args:
        values: The point to project [n].
        lower: Smallest values, for all or for each [n].
        upper: Largest values, for all or for each [n].

    Returns:
        The projection, float64 [n].

    Raises:
        ValueError: If `lower` exceeds `upper`, or no point between them sums to 1.
    """
    v = np.asarray(values, dtype=np.float64)
    lo = np.broadcast_to(np.asarray(lower, dtype=np.float64), v.shape)
    hi = np.broadcast_to(np.asarray(upper, dtype=np.float64), v.shape)
    if not np.all(lo <= hi):
        raise ValueError("a lower bound exceeds its upper bound")
    least, most = float(np.sum(lo)), float(np.sum(hi))
    if least > 1 + _TOLERANCE or most < 1 - _TOLERANCE:
        raise ValueError(
            f"no point between the bounds sums to 1: their sums are {least:.6g} and {most:.6g}"
        )
    ends = np.sort(np.concatenate([v - lo, v - hi]))
    left, right = 0, len(ends) - 1
    while right - left > 1:
        middle = (left + right) // 2
        if np.clip(v - ends[middle], lo, hi).sum() >= 1:
            left = middle
        else:
            right = middle
    tau = 0.5 * (ends[left] + ends[right])
    at_lower, at_upper = v - tau <= lo, v - tau >= hi
    x = np.where(at_lower, lo, hi)
    free = ~(at_lower | at_upper)
    if free.any():
        rest = 1 - float(np.sum(x[~free]))
        x[free] = v[free] + (rest - float(np.sum(v[free]))) / np.count_nonzero(free)
    return np.clip(x, lo, hi)


def _checked_reference_and_floor(
    reference_ratio: npt.ArrayLike, floor: npt.ArrayLike | None
) -> tuple[FloatArray, FloatArray]:
    p = np.asarray(reference_ratio, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or not np.all((p > 0) & np.isfinite(p)):
        raise ValueError("the reference ratio must be a vector of positive numbers")
    total = float(np.sum(p))
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the reference ratio must sum to 1, not {total:.9g}")
    p = p / total
    if floor is None:
        return p, np.full_like(p, p.min())
    f = np.asarray(floor, dtype=np.float64)
    if f.shape not in ((), p.shape) or not np.all((f >= 0) & np.isfinite(f)):
        raise ValueError(
            f"the floor must be a number of at least 0, or one for each of {len(p)} domains"
        )
    f = np.broadcast_to(f, p.shape)
    if (total := float(np.sum(f))) > 1 + _TOLERANCE:
        raise ValueError(f"the floors sum to {total:.6g}, more than 1; lower the floor")
    return p, f


@dataclass(frozen=True)
class _Tilted:
    """The domains that are above their floor at some tilt, and what depends on that set alone."""

    free: IndexArray
    weight: FloatArray  # p of the free domains
    centred: FloatArray  # their scores less the mean under p
    level: float  # their mass relative to that under p
    floor: FloatArray  # of all domains
    fixed_cost: float  # twice the divergence at tilt 0
    variance: float  # twice the divergence is fixed_cost + tilt**2 * variance

    def cost(self, tilt: float) -> float:
        return self.fixed_cost + tilt * tilt * self.variance

    def tilt_of(self, cost: float) -> float | None:
        """Solve for the tilt at which this set has this cost; None if there is none."""
        if self.variance <= 0 or cost <= self.fixed_cost:
            return None
        return math.sqrt((cost - self.fixed_cost) / self.variance)

    def ratio(self, tilt: float) -> FloatArray:
        q = self.floor.copy()
        raised = self.weight * (self.level + tilt * self.centred)
        q[self.free] = np.maximum(raised, self.floor[self.free])
        return q


class _Problem:
    """One problem to solve: scores in [-1, 0], reference ratio `p` and floor `f`, all [n]."""

    def __init__(self, scores: FloatArray, p: FloatArray, f: FloatArray) -> None:
        self.scores, self.p, self.f = scores, p, f
        self.slack = max(1 - float(np.sum(f)), 0.0)

    def tilted(self, tilt: float, among: IndexArray | None = None) -> _Tilted:
        """Find the free domains at this tilt: all of `among` but those that fall to their floor.

        Holding a domain at its floor, above what the tilt would give it, takes mass from the others
        and only lowers them. So a domain that has fallen once never rises again, and the sets that
        shrink step by step end at the right one without a search over all subsets.
        """
        free = np.arange(len(self.p)) if among is None else among
        while True:
            s, p, f = self.scores[free], self.p[free], self.f[free]
            total = float(p.sum())
            level = (self.slack + float(f.sum())) / total
            centred = s - s.max()  # differences of close scores are exact, whatever the others are
            centred -= float(p @ centred) / total
            centred -= float(p @ centred) / total  # what rounding left of the mean
            above = p * (level + tilt * centred) > f
            if above.all() or not above.any():
                break
            free = free[above]
        pinned = np.ones(len(self.p), dtype=bool)
        pinned[free] = False
        fallen_p, fallen_f = self.p[pinned], self.f[pinned]
        fixed = float(((fallen_f - fallen_p) ** 2 / fallen_p).sum()) + total * (level - 1) ** 2
        variance = float(p @ centred**2)
        return _Tilted(free, p, centred, level, self.f, fixed, variance)

    def extreme(self) -> FloatArray:
        """Find the limit of infinite tilt: all mass above the floors goes to the largest scores."""
        best = np.flatnonzero(self.scores >= -_TIE)
        level_scores = _Problem(np.zeros_like(self.p), self.p, self.f)
        return level_scores.tilted(0.0, best).ratio(0.0)

    def on_the_ball(self, rho: float) -> FloatArray:
        """Find the solution whose divergence is exactly `rho` (the radius limits it, Eq. 5).

        A Newton iteration on the squared tilt, kept inside a shrinking bracket.
        """
        # While the set of free domains stays the same, twice the divergence is linear in the
        # squared tilt: fixed_cost + tilt**2 * variance. So the root within one such piece has a
        # closed form (`tilt_of`), and is the solution if the set at the root is the same. If not,
        # the root is the next guess, as in Newton's method, unless it leaves the bracket from low
        # to high, tilts known to be too small and too large. Then the bracket is extended or cut at
        # its geometric mean, since tilts range over many orders of magnitude.
        budget = 2 * rho
        low, high = 0.0, math.inf
        best = self.tilted(0.0)
        spread = best.variance or float(self.p @ self.scores**2)
        tilt = best.tilt_of(budget) or math.sqrt(budget / spread)
        for _ in range(_MAX_TILTS):
            piece = self.tilted(tilt)
            if piece.cost(tilt) <= budget:
                low, best = tilt, piece
            else:
                high = tilt
            target = piece.tilt_of(budget)
            if target is not None and abs(target - tilt) <= 1e-14 * tilt:
                return piece.ratio(target)
            if target is None or not low < target < high:
                target = 8 * tilt if math.isinf(high) else math.sqrt(low * high) or high / 8
            if high <= low * (1 + 1e-15):
                break
            tilt = target
        return best.ratio(low)
