"""Which blocks come next: global batches that follow a data ratio, planned segment by segment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drpruning.data.permutation import Indices, KeyedPermutations, key_of, keyed_hash

_STATE_VERSION = 1
_EQUAL_DIGITS = 9

OnExhausted = Literal["repeat", "redistribute", "stop"]
"""What happens when a domain is exhausted: it is repeated in a new order; its share goes to the
other domains in proportion; or the others fill the segment, and no further one is planned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """The global batches between two evaluations, all under one ratio.

    Attributes:
        domains: names; a domain index points into them.
        start_step: optimizer steps done before the segment.
        steps: number of global batches.
        global_batch: blocks per batch.
        counts: blocks of each domain in the segment; they sum to steps * global_batch.
        carry: what each domain is owed after the segment, in blocks (wanted minus given so far).
        used_up: domains that are exhausted: their last new block is in the segment. With the rule
            that applies to each.
    """

    domains: tuple[str, ...]
    start_step: int
    steps: int
    global_batch: int
    counts: dict[str, int]
    carry: dict[str, float]
    used_up: dict[str, OnExhausted]
    _domain_index: Indices  # [steps, global_batch], as `_block_id`
    _block_id: Indices

    def __len__(self) -> int:
        return self.steps

    def batch(self, index: int) -> tuple[Indices, Indices]:
        """The global batch of a step.

        Args:
            index: step within the segment, in [0, steps).

        Returns:
            Domain index and block id (within the domain's train blocks) of each row, int64
            [global_batch]. A rank takes its slice of the rows, so the data does not depend on the
            number of ranks or micro-batches.
        """
        if not 0 <= index < self.steps:
            raise IndexError(f"step {index} is outside a segment of {self.steps} steps")
        return self._domain_index[index], self._block_id[index]

    def blocks(self, index: int) -> dict[str, list[int]]:
        """Domain -> block ids in the global batch of a step, for people; see `batch`."""
        domains, ids = self.batch(index)
        found = {name: np.sort(ids[domains == i]) for i, name in enumerate(self.domains)}
        return {name: rows.tolist() for name, rows in found.items() if len(rows)}

    @property
    def realised_share(self) -> dict[str, float]:
        """Share of each domain in the segment's blocks; sums to 1."""
        total = self.steps * self.global_batch
        return {name: count / total for name, count in self.counts.items()}


class Mixture:
    """Reads several domains so that the blocks given out follow a changing ratio.

    A segment is a pure function of (seed, step, ratio, cursors, carry). Each domain is read in the
    order of a keyed permutation of its blocks, another one in every epoch, so every block comes
    exactly once per epoch. The number of blocks that a domain gets in a segment is rounded, and the
    difference is carried to the next: as long as the ratio wants at least one block of every domain
    per segment, the blocks given so far differ by less than one from what the ratios wanted.

    A domain that does not repeat gives every block once at most. What the ratio wants of it beyond
    that goes to the others in proportion to their shares, and it is owed nothing.

    To resume inside a segment: restore the state saved at its start, plan it again with the same
    ratio and steps, and skip the batches already used.

    Args:
        sizes: train blocks of each domain, at least 1.
        global_batch: blocks per optimizer step.
        seed: of the permutations, the interleaving and the row order.
        on_exhausted: what happens when a domain is exhausted; those not named repeat.

    Raises:
        ValueError: no domains, an empty domain, an empty batch or an unknown rule.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        global_batch: int,
        seed: int,
        on_exhausted: Mapping[str, OnExhausted] | None = None,
    ) -> None:
        if not sizes:
            raise ValueError("a mixture needs at least one domain")
        if empty := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"domains without a single block: {', '.join(empty)}")
        if global_batch < 1:
            raise ValueError(f"global_batch must be at least 1, got {global_batch}")
        rules: dict[str, OnExhausted] = {**dict.fromkeys(sizes, "repeat"), **(on_exhausted or {})}
        if rules.keys() != sizes.keys() or not set(rules.values()) <= set(get_args(OnExhausted)):
            raise ValueError(f"on_exhausted does not fit the domains {', '.join(sizes)}: {rules}")
        self.domains = tuple(sizes)
        self.sizes = dict(sizes)
        self.on_exhausted = rules
        self.global_batch = global_batch
        self.seed = seed
        self.step = 0
        self._cursors = np.zeros(len(sizes), dtype=np.int64)
        self._carry = np.zeros(len(sizes))
        self._sizes = np.array(list(sizes.values()), dtype=np.int64)
        self._orders = KeyedPermutations(
            list(sizes.values()), [("order", seed, name) for name in sizes]
        )

    def plan_segment(self, ratio: Mapping[str, float], steps: int) -> Segment:
        """Plan the next `steps` global batches under `ratio`, without moving on.

        Args:
            ratio: share of each domain, non-negative, summing to 1 (within 1e-6).
            steps: number of batches, at least 1.

        Returns:
            The segment; pass it to `advance` once it has been trained on. It is shorter than asked
            for where no domain has text for more.

        Raises:
            ValueError: the shares are no ratio or name other domains; `steps` is below 1, or there
                is no text left for one step.
        """
        if steps < 1:
            raise ValueError(f"a segment needs at least one step, got {steps}")
        shares = _checked_ratio(ratio, self.domains)
        left = self._left()
        steps = int(min(steps, left.sum() / self.global_batch))
        if steps < 1:
            raise ValueError(f"there are not even {self.global_batch} blocks left that are new")
        total = steps * self.global_batch
        wanted = _within(self._carry + shares * total, shares, left)
        quota = _apportion(wanted, total, left)

        # Systematic sampling: the k-th of a domain's n blocks is placed at (k + offset) / n of the
        # segment, and all are sorted by place. So every batch, not only the segment, follows the
        # ratio to within about a block per domain; independent draws would vary between batches.
        # The offset is random, lest the domains' first blocks all fall into the first batch.
        domain_index = np.repeat(np.arange(len(quota)), quota)
        count = np.arange(total) - np.repeat(np.cumsum(quota) - quota, quota)
        offsets = (
            np.array([key_of("offset", self.seed, self.step, n) for n in self.domains]) / 2**64
        )
        positions = (count + offsets[domain_index]) / quota[domain_index]
        epochs, places = np.divmod(self._cursors[domain_index] + count, self._sizes[domain_index])
        block_id = self._orders(domain_index, places, epochs)
        order = np.argsort(positions, kind="stable")
        # Sorted by place, every batch would have its domains in about the same order, and a rank,
        # which takes a slice of the rows, would see some domains more often than the others.
        order = self._rows_shuffled(order.reshape(steps, self.global_batch))
        return Segment(
            domains=self.domains,
            start_step=self.step,
            steps=steps,
            global_batch=self.global_batch,
            counts=self._by_name(quota),
            carry=self._by_name(wanted - quota),
            used_up=self._exhausted_by(quota),
            _domain_index=domain_index[order],
            _block_id=block_id[order],
        )

    def _rows_shuffled(self, batches: Indices) -> Indices:
        """Shuffle the rows of each batch of [steps, global_batch].

        The order comes from the batch's step in the run, not from its place in the segment, so that
        no two segments repeat the same orders.
        """
        first = self.step * self.global_batch
        places = np.arange(first, first + batches.size).reshape(batches.shape)
        hashes = keyed_hash(key_of("rows", self.seed), places)
        shuffled = np.take_along_axis(batches, np.argsort(hashes, axis=1, kind="stable"), axis=1)
        return np.asarray(shuffled, dtype=np.int64)

    def advance(self, segment: Segment) -> None:
        """Move to the end of a segment that was planned from here.

        Raises:
            ValueError: the segment starts at another step or belongs to another mixture.
        """
        if segment.domains != self.domains or segment.global_batch != self.global_batch:
            raise ValueError("the segment was planned by a mixture of other domains or batch size")
        if segment.start_step != self.step:
            raise ValueError(
                f"the segment starts at step {segment.start_step}, the mixture is at {self.step}"
            )
        self.step += segment.steps
        self._cursors += np.array([segment.counts[name] for name in self.domains])
        self._carry = np.array([segment.carry[name] for name in self.domains])

    def exhausted(self) -> str | None:
        """The reason why no further segment can or may be planned; None where one can."""
        over = [n for n, left in zip(self.domains, self._left(), strict=True) if left <= 0]
        if stopping := [name for name in over if self.on_exhausted[name] == "stop"]:
            return f"{' and '.join(stopping)} exhausted (on_exhausted: stop)"
        if self._left().sum() < self.global_batch:
            return "all domains exhausted, and none of them repeats"
        return None

    def _left(self) -> NDArray[np.float64]:
        """Blocks that each domain can still give; infinite where it repeats."""
        repeats = np.array([self.on_exhausted[name] == "repeat" for name in self.domains])
        return np.where(repeats, np.inf, self._sizes - self._cursors)

    def _exhausted_by(self, quota: Indices) -> dict[str, OnExhausted]:
        """The domains whose last new block is among the next `quota` blocks, and their rules."""
        sizes = self._sizes
        ends = (self._cursors < sizes) & (self._cursors + quota >= sizes)
        names = (name for name, end in zip(self.domains, ends, strict=True) if end)
        return {name: self.on_exhausted[name] for name in names}

    @property
    def consumed(self) -> dict[str, int]:
        """Blocks given out so far."""
        return self._by_name(self._cursors)

    @property
    def realised_share(self) -> dict[str, float]:
        """Share of each domain in all blocks given out so far; zeros before the first."""
        return self._by_name(self._cursors / max(int(self._cursors.sum()), 1))

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each domain so far; 1.5 is one and a half."""
        return {name: count / self.sizes[name] for name, count in self.consumed.items()}

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as plain JSON values."""
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "sizes": [[name, size] for name, size in self.sizes.items()],
            "step": self.step,
            "cursors": self._cursors.tolist(),
            "carry": self._carry.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the position of another mixture of the same data.

        Raises:
            ValueError: the state was written by another version, or for other domains, numbers of
                blocks, batch size or seed; nothing is changed then.
        """
        current = self.state_dict()
        for field in ("version", "seed", "global_batch", "sizes"):
            if state.get(field) != current[field]:
                raise ValueError(
                    f"the saved order of the data has {field} = {state.get(field)}, this run has "
                    f"{current[field]}: it can only be resumed with the same data and settings"
                )
        self.step = int(state["step"])
        self._cursors = np.array(state["cursors"], dtype=np.int64)
        self._carry = np.array(state["carry"], dtype=np.float64)

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """Continue where the mixture of an earlier phase, on the same data, stopped.

        The blocks that it has given out come again only after all others; steps count from 0, and
        the batch size may differ.

        Args:
            state: the earlier mixture's `state_dict`.

        Raises:
            ValueError: the state is of other domains, numbers of blocks or seed.
        """
        self.load_state_dict({**state, "step": 0, "global_batch": self.global_batch})

    def _by_name(self, values: NDArray[Any]) -> dict[str, Any]:
        return dict(zip(self.domains, values.tolist(), strict=True))


def _checked_ratio(ratio: Mapping[str, float], domains: tuple[str, ...]) -> NDArray[np.float64]:
    if set(ratio) != set(domains):
        raise ValueError(f"the ratio is for {sorted(ratio)}, the domains are {sorted(domains)}")
    shares = np.array([ratio[name] for name in domains], dtype=np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and abs(shares.sum() - 1) <= 1e-6):
        raise ValueError(f"shares must be non-negative and sum to 1, got {dict(ratio)}")
    normalized: NDArray[np.float64] = shares / shares.sum()
    return normalized


def _within(
    wanted: NDArray[np.float64], shares: NDArray[np.float64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cut `wanted` to at most `most`; what is cut off goes to the other domains by their shares."""
    given = wanted.copy()
    while (over := given > most).any():
        full = given >= most
        excess = float((given - most)[over].sum())
        given[over] = most[over]
        weight = np.where(full, 0.0, shares)
        if not weight.any():  # the ratio wants nothing of those that have something left
            weight = np.where(full, 0.0, 1.0)
        if not weight.any():
            break
        given += excess * (weight / weight.sum())
    return given


def _apportion(wanted: NDArray[np.float64], total: int, most: NDArray[np.float64]) -> Indices:
    """Round `wanted` to integers from 0 to `most` that sum to `total`, by largest remainder.

    Remainders are compared to nine digits. Equal ones are common (domains at the floor), and the
    last bits of the ratio, which depend on the number of ranks, must not decide between them.
    """
    quota = np.maximum(np.floor(wanted), 0).astype(np.int64)
    while missing := total - int(quota.sum()):
        order = np.argsort(np.round(wanted - quota, _EQUAL_DIGITS), kind="stable")
        if missing > 0:
            quota[order[quota[order] < most[order]][::-1][:missing]] += 1
        else:
            quota[order[quota[order] > 0][:-missing]] -= 1
    return quota
