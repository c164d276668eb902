"""A search for shapes of a parameter budget, uniform and hardware-friendly. No torch is needed.

A shape is judged by how far it misses the budget, how far its proportions depart from the source's,
and how well its sizes suit matrix units. Layers, hidden size and heads are tried out; the
feed-forward width then follows from the budget, since parameters are linear in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, log
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.pruning.clients import BLOCKS, heads_must_fill
from drpruning.pruning.shapes import PRUNABLE, ModelShape

SMALLEST_SHARE = 0.05
"""The share of every dimension that stays at least: hard-concrete masks at the lower end of their
log-alphas have an expected sparsity of 0.95."""
TOLERANCE = 0.02
"""Relative distance from the budget beyond which closeness counts more than anything else."""
DEPTH_EXPONENT = 0.1
"""Layers wanted: the source's times (budget / source's parameters) to this power. Removing width
costs less quality than removing layers, so depth shrinks last: of the paper's targets (24 or 32 of
Llama2-7B's 32 layers, 28 of Qwen2-7B's 28) none is more than 16% away."""
LARGEST_STEP = 128
"""Widths are multiples of this in models of 2,048 dimensions and more."""
HEAD_CHOICES = 3
"""Choices of heads that are tried for a hidden size."""
MOST_TRIED = 256
"""Sizes of a kind that are tried, evenly spread where there are more: all of them up to 256 layers,
and up to a hidden size of 32,768. It bounds the time that the search takes for any source."""
REFUSED_BY_CLIENTS = 25.0
"""The cost of what other software cannot load or quantize although it could the source: more than
any proportion costs, less than a miss of the budget beyond `TOLERANCE`."""
NOT_QUANTIZED_BEST = 0.25
"""The cost of a width for each larger block that it does not fill: that of 0.25% of the budget."""
DEPTHS_APART = 0.1
"""Proposals of one hidden size differ in depth by more than this share of the source's."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A shape for a parameter budget.

    Attributes:
        shape: What the source can be pruned to.
        deviation: Its parameters over the budget, minus 1.
        reason: What speaks for it and against it, in short phrases.
    """

    shape: ModelShape
    deviation: float
    reason: str


def propose_shapes(source: ModelShape, params: int, count: int = 5, **fixed: int) -> list[Proposal]:
    """Search uniform shapes of about this many parameters, the best first.

    Args:
        source: The model to be pruned.
        params: Parameters wanted, as `ModelShape.num_parameters` counts them: all of them,
            embeddings included, a tied matrix once.
        count: Proposals, at most; they differ in hidden size or clearly in depth.
        fixed: Dimensions that are given (num_layers, hidden_size, ...) and their sizes.

    Returns:
        Shapes that `source.pruned_to` accepts and that are not the source's own, none further than
        2% from the budget where any is nearer.

    Raises:
        BadInput: No shape has so many or so few parameters (the message gives the range), or a
            fixed dimension is impossible.
    """
    for name, size in fixed.items():
        if name not in PRUNABLE or not 1 <= size <= getattr(source, name):
            raise BadInput(f"{name} {size} is none that the source can be pruned to")
    search = _Search(source, params, fixed)
    smallest, largest = search.possible()
    if not smallest <= params <= largest:
        beside = f" with {', '.join(f'{n} {s}' for n, s in fixed.items())}" if fixed else ""
        raise BadInput(
            f"no shape of {params:,} parameters{beside} can be cut out of the source's "
            f"{source.num_parameters():,}; possible: {smallest:,} to {largest:,}"
        )
    proposals: list[Proposal] = []
    for _, dimensions in sorted(search.candidates(), key=lambda candidate: candidate[0]):
        shape = source.pruned_to(**dict(zip(PRUNABLE, dimensions, strict=True)))
        proposal = _proposal(source, shape, params)
        if len(proposals) == count or (proposals and abs(proposal.deviation) > TOLERANCE):
            break
        if shape != source and not any(_alike(shape, p.shape, source) for p in proposals):
            proposals.append(proposal)
    return proposals


def _alike(one: ModelShape, other: ModelShape, source: ModelShape) -> bool:
    """Whether two shapes are too similar to propose both."""
    apart = abs(one.num_layers - other.num_layers)
    return one.hidden_size == other.hidden_size and apart <= DEPTHS_APART * source.num_layers


class _Search:
    """All shapes that are tried, each with its cost; 1 is the cost of leaving 1% of the budget."""

    def __init__(self, source: ModelShape, params: int, fixed: Mapping[str, int]) -> None:
        self.source = source
        self.params = params
        self.fixed = fixed
        self.depth = source.num_layers * (params / source.num_parameters()) ** DEPTH_EXPONENT
        self.hidden_step = _step(source.hidden_size)
        self.intermediate_step = _step(source.intermediate_size)
        self.attention_share = source.num_heads * source.head_dim / source.hidden_size
        self.expansion = source.intermediate_size / source.hidden_size
        self.heads = {hidden: self._heads_for(hidden) for hidden in self._hidden_sizes()}

    def possible(self) -> tuple[int, int]:
        """The numbers of parameters of the smallest and of the largest shape."""
        at_least = [
            self._count(hidden, heads, groups)(self._layers()[0], self._intermediate_bounds()[0])
            for hidden, choices in self.heads.items()
            for _, heads, groups in choices
        ]
        if not at_least:
            named = ", ".join(f"{name} {size}" for name, size in self.fixed.items())
            raise BadInput(f"no shape with {named} can be cut out of the source")
        given: dict[str, Any] = {k: v for k, v in self.fixed.items() if "heads" not in k}
        largest = replace(self.source, **given)
        return min(at_least), min(largest.num_parameters(), self.source.num_parameters() - 1)

    def candidates(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Cost and dimensions, in the order of `PRUNABLE`, of every shape."""
        lowest, highest = self._intermediate_bounds()
        for hidden, choices in self.heads.items():
            for heads_cost, heads, groups in choices:
                count = self._count(hidden, heads, groups)
                for layers in self._layers():
                    without = count(layers, 0)
                    per_unit = count(layers, 1) - without
                    wanted = (self.params - without) / per_unit
                    cost = heads_cost + self._depth_cost(layers)
                    for intermediate in self._widths_near(wanted, lowest, highest):
                        total = without + intermediate * per_unit
                        yield (
                            cost
                            + self._budget_cost(total)
                            + self._feed_forward_cost(intermediate, hidden),
                            (layers, hidden, intermediate, heads, groups),
                        )

    def _count(self, hidden: int, heads: int, groups: int) -> Callable[[int, int], int]:
        """The number of parameters as a function of layers and intermediate size.

        It is linear in each of them, so three shapes determine it; to build a shape for every
        combination would take most of the search's time.
        """
        shape = replace(
            self.source,
            num_layers=1,
            hidden_size=hidden,
            intermediate_size=1,
            num_heads=heads,
            num_kv_heads=groups,
        )
        one = shape.num_parameters()
        layer = replace(shape, num_layers=2).num_parameters() - one
        unit = replace(shape, intermediate_size=2).num_parameters() - one
        return lambda layers, width: one + (layers - 1) * layer + layers * unit * (width - 1)

    def _layers(self) -> Sequence[int]:
        most, step = self.source.num_layers, self.source.layer_period
        least = step * ceil(SMALLEST_SHARE * most / step)
        return self._only("num_layers") or _spread(range(least, most + 1, step))

    def _only(self, name: str) -> list[int]:
        return [self.fixed[name]] if name in self.fixed else []

    def _hidden_sizes(self) -> list[int]:
        """The hidden sizes to try: multiples of the step, and of the head size.

        The latter only where the source's heads fill its hidden size, so that they can again.
        """
        most, step = self.source.hidden_size, self.hidden_step
        sizes = {most, *_spread(range(step, most, step))}
        if self.attention_share == 1:
            sizes |= set(_spread(range(self.source.head_dim, most, self.source.head_dim)))
        fitting = sorted(size for size in sizes if size >= SMALLEST_SHARE * most)
        return self._only("hidden_size") or fitting

    def _heads_for(self, hidden: int) -> list[tuple[float, int, int]]:
        """The best (cost, heads, KV groups) for a hidden size that the source can be pruned to."""
        source = self.source
        options = []
        for groups in self._only("num_kv_heads") or range(1, source.num_kv_heads + 1):
            for queries in range(1, source.queries_per_group + 1):
                heads = groups * queries
                if heads == self.fixed.get("num_heads", heads) >= SMALLEST_SHARE * source.num_heads:
                    options.append((self._heads_cost(hidden, heads, groups), heads, groups))
        accepted = []
        for cost, heads, groups in sorted(options):
            if source.heads_refusal(heads, groups, hidden):
                continue
            accepted.append((cost, heads, groups))
            if len(accepted) == HEAD_CHOICES:
                break
        return accepted

    def _intermediate_bounds(self) -> tuple[int, int]:
        if only := self._only("intermediate_size"):
            return only[0], only[0]
        most, step = self.source.intermediate_size, self.intermediate_step
        return min(most, ceil(SMALLEST_SHARE * most / step) * step), most

    def _widths_near(self, wanted: float, lowest: int, highest: int) -> set[int]:
        steps = (self.intermediate_step, 2 * self.intermediate_step)
        around = {step * (int(wanted // step) + more) for step in steps for more in (0, 1)}
        return {min(max(width, lowest), highest) for width in around}

    # Costs, which are added up.

    def _budget_cost(self, total: int) -> float:
        """1 per percent below the budget, 3 per percent above, and no end beyond the tolerance."""
        deviation = total / self.params - 1
        beyond = max(abs(deviation) - TOLERANCE, 0)
        return 100 * (abs(deviation) + 2 * max(deviation, 0)) + 1e5 * beyond

    def _depth_cost(self, layers: int) -> float:
        divisible = layers == self.source.num_layers or layers % 4 == 0
        return _distance(layers, self.depth) + (0 if divisible else 0.5 if layers % 2 == 0 else 2)

    def _feed_forward_cost(self, intermediate: int, hidden: int) -> float:
        even = 0.0 if intermediate % (2 * self.intermediate_step) == 0 else 0.25
        blocks = self._block_cost(intermediate, self.source.intermediate_size)
        return _distance(intermediate / hidden, self.expansion) + max(even, blocks)

    def _block_cost(self, width: int, sources: int) -> float:
        """The cost of a width that quantized blocks do not divide, where they do the source's."""
        broken = [size for size in BLOCKS if width % size and not sources % size]
        if min(BLOCKS) in broken:
            return REFUSED_BY_CLIENTS
        return NOT_QUANTIZED_BEST * len(broken)

    def _heads_cost(self, hidden: int, heads: int, groups: int) -> float:
        source = self.source
        share = heads * source.head_dim / hidden
        cost = 3 * _distance(share, self.attention_share)
        if self.attention_share == 1 != share:
            cost += REFUSED_BY_CLIENTS if heads_must_fill(source) else 2
        queries = heads * source.head_dim
        cost += max(
            self._block_cost(hidden, source.hidden_size),
            self._block_cost(queries, source.num_heads * source.head_dim),
        )
        cost += _distance(heads / groups, source.queries_per_group)
        cost += 0 if hidden % self.hidden_step == 0 else 2
        cost += 0 if heads % 4 == 0 else 0.5 if heads % 2 == 0 else 1.5
        if source.queries_per_group > 1 and groups & (groups - 1):  # no power of two
            cost += 0.75 if groups % 2 == 0 else 3
        return cost


def _spread(sizes: range) -> range:
    """At most `MOST_TRIED` of the sizes, in even steps, the largest among them."""
    return sizes[:: -ceil(len(sizes) / MOST_TRIED)][::-1] if sizes else sizes


def _step(size: int) -> int:
    """The step between widths to try: a power of two, at most a sixteenth of the source's width."""
    return min(LARGEST_STEP, 1 << max(0, (size // 16).bit_length() - 1))


def _distance(value: float, wanted: float) -> float:
    """The cost of a proportion that is not as wanted: 0.3 where it is 10% off, 1.5 at 25%."""
    return 30 * log(value / wanted) ** 2


def _proposal(source: ModelShape, shape: ModelShape, params: int) -> Proposal:
    deviation = shape.num_parameters() / params - 1
    side = "over" if deviation > 0 else "under"
    off = f"{100 * abs(deviation):.1f}%"
    phrases = ["on the budget" if off == "0.0%" else f"{off} {side} the budget"]
    if shape.num_layers == source.num_layers:
        phrases.append("keeps the source's depth")
    else:
        phrases.append(f"{shape.num_layers} of {source.num_layers} layers")
    phrases.append(f"widths multiples of {gcd(shape.hidden_size, shape.intermediate_size, 256)}")
    attention = shape.num_heads * shape.head_dim / shape.hidden_size
    if attention == 1:
        phrases.append("heads x head size = hidden")
    elif source.num_heads * source.head_dim == source.hidden_size:
        phrases.append(f"heads x head size = {attention:.2f} hidden")
    if shape.queries_per_group != source.queries_per_group:
        phrases.append(
            f"{shape.queries_per_group} query heads per group (source {source.queries_per_group})"
        )
    expansion = shape.intermediate_size / shape.hidden_size
    sources = source.intermediate_size / source.hidden_size
    alike = abs(expansion / sources - 1) < 0.05
    compared = "as in the source" if alike else f"(source {sources:.2f})"
    phrases.append(f"feed-forward {expansion:.2f} x hidden {compared}")
    return Proposal(shape=shape, deviation=deviation, reason="; ".join(phrases))
