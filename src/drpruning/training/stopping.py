"""When mask learning may end before its last step."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from drpruning.pruning import PruningPlan
from drpruning.recipe import Stop

LARGEST_DEVIATION = 0.05
"""Distance of a layer's sparsity from its target at which a cut is abrupt."""


def is_settled(plans: Sequence[PruningPlan], deviation: Mapping[str, float], stop: Stop) -> bool:
    """Whether mask learning may end at this evaluation: plans are stable and sparsity is reached.

    Args:
        plans: What would have been cut at each evaluation since the sparsity had its final target,
            in the order of time, this one last.
        deviation: Granularity -> largest distance of a layer's expected sparsity from its target.
        stop: How long and how nearly plans must agree; each with the one before, in the least
            similar granularity.
    """
    latest = plans[-stop.evaluations - 1 :]
    if len(latest) <= stop.evaluations or max(deviation.values()) > LARGEST_DEVIATION:
        return False
    return all(
        min(new.similarity(old).values()) >= stop.similarity for old, new in pairwise(latest)
    )


def stop_reason(stop: Stop) -> str:
    """What the log says of it."""
    return (
        f"in each of the last {stop.evaluations} evaluations the plan agreed with the one before "
        f"by at least {stop.similarity:.4g} in every granularity"
    )
