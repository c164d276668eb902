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


def deviation_text(
    sparsity: Mapping[str, float],
    target: Mapping[str, float],
    deviation: Mapping[str, float],
    *,
    last: bool,
) -> list[str]:
    """A line for each granularity that is off its target in some layer.

    Args:
        sparsity: Granularity -> expected share removed, mean over layers.
        target: The share that is to be removed by now.
        deviation: Largest distance between the two in any layer.
        last: At the end of mask learning, not of the sparsity warm-up.
    """
    follows = (
        "the cut is exact all the same, but abrupt; more prune.steps would help"
        if last
        else "if the masks do not follow, raise prune.mask_learning_rate or sparsity_warmup"
    )
    return [
        f"the sparsity of {name} is {sparsity[name]:.3f} where its target is {target[name]:.3f} "
        f"(in a layer it is {off:.3f} off): {follows}"
        for name, off in deviation.items()
        if not off <= LARGEST_DEVIATION
    ]
