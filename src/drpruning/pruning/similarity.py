"""How alike plans are, compared with what chance gives (Appendix B.1)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from drpruning.common.errors import BadInput
from drpruning.pruning.plan import DIMENSIONS, PruningPlan

_OUTSIDE_LAYERS = ("layer", "hidden")


@dataclass(frozen=True, kw_only=True)
class PlanComparison:
    """How far two plans of one source agree.

    Attributes:
        first: What the one plan is called.
        second: What the other is called.
        similarity: Granularity -> share of the source's parts on which they decide alike.
        chance: The same for random plans of these shapes, see `chance_similarity`.
        only_first: Layers that only the first keeps.
        only_second: Layers that only the second keeps.
        other_heads: Layers that both keep, but with other query heads.
    """

    first: str
    second: str
    similarity: dict[str, float]
    chance: dict[str, float]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    other_heads: tuple[int, ...]

    @classmethod
    def of(cls, first: str, one: PruningPlan, second: str, other: PruningPlan) -> "PlanComparison":
        """Compare two plans.

        Raises:
            BadInput: They cut different sources.
        """
        if differences := one.source.differences(other.source):
            sizes = ", ".join(f"{name} {a} and {b}" for name, (a, b) in differences.items())
            raise BadInput(
                f"{first} and {second} cut different models ({sizes}); compare plans of one source"
            )
        similarity = one.similarity(other)
        mine, theirs = set(one.layers), set(other.layers)
        heads = [dict(zip(plan.layers, plan.heads, strict=True)) for plan in (one, other)]
        return cls(
            first=first,
            second=second,
            similarity=similarity,
            chance=chance_similarity(one, other, similarity),
            only_first=tuple(sorted(mine - theirs)),
            only_second=tuple(sorted(theirs - mine)),
            other_heads=tuple(i for i in sorted(mine & theirs) if heads[0][i] != heads[1][i]),
        )


def chance_similarity(
    one: PruningPlan, other: PruningPlan, granularities: Iterable[str]
) -> dict[str, float]:
    """The similarity to expect of two independent, uniformly random plans of these shapes.

    A part stays in a plan with a probability p that is the same for every part of its kind: the
    share of layers for a layer; for a part of a layer that share times the share of such parts in
    a kept layer, because those of a removed layer count as removed. Two plans agree on it with
    probability p p' + (1 - p)(1 - p'), and by linearity the mean over parts is the same, however
    the parts of one plan depend on each other.

    Args:
        one: A plan.
        other: A plan for the same source.
        granularities: Some that `PruningPlan.similarity` has.

    Returns:
        Granularity -> expected share in [0, 1].
    """
    expected = {}
    for name in granularities:
        p, q = _kept_share(one, name), _kept_share(other, name)
        expected[name] = p * q + (1 - p) * (1 - q)
    return expected


def _kept_share(plan: PruningPlan, granularity: str) -> float:
    """The probability that a random plan of this shape keeps a part."""

    def share(name: str) -> float:
        size: int = getattr(plan.source, DIMENSIONS[name])
        kept: int = getattr(plan.target, DIMENSIONS[name])
        return kept / size

    return share(granularity) * (1 if granularity in _OUTSIDE_LAYERS else share("layer"))


def compare_plans(plans: Mapping[str, PruningPlan]) -> list[PlanComparison]:
    """Compare every pair of plans, in order.

    Args:
        plans: What to call it -> plan.

    Raises:
        BadInput: Two plans cut different sources.
    """
    return [
        PlanComparison.of(first, plans[first], second, plans[second])
        for first, second in combinations(plans, 2)
    ]
