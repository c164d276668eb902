"""What decides where a block comes: seed and global step, not how steps are cut into segments."""

import json

import numpy as np
import pytest

from drpruning.data import Mixture, keyed_permutation

SIZE, BATCH = 100_000, 16
THREE = {"a": 1000, "b": 1000, "c": 1000}


def row_orders(seed: int, cuts: list[int]) -> list[tuple[int, ...]]:
    """For each step, the order in which its rows come after the shuffle.

    With a single domain the blocks of a step are known before the shuffle: its permutation.
    """
    mixture = Mixture({"a": SIZE}, BATCH, seed)
    walk = keyed_permutation(SIZE, ("order", seed, "a"))(np.arange(sum(cuts) * BATCH))
    place = {int(block): index for index, block in enumerate(walk)}
    orders = []
    for steps in cuts:
        segment = mixture.plan_segment({"a": 1.0}, steps)
        for index in range(steps):
            _, blocks = segment.batch(index)
            orders.append(tuple(place[int(block)] - len(orders) * BATCH for block in blocks))
        mixture.advance(segment)
    return orders


def test_rows_are_shuffled_by_the_global_step() -> None:
    at_once = row_orders(3, [6])
    assert all(sorted(order) == list(range(BATCH)) for order in at_once)
    assert len({*at_once}) == 6
    for cuts in ([1] * 6, [2, 3, 1]):
        assert row_orders(3, cuts) == at_once


def test_rows_are_shuffled_by_the_seed() -> None:
    assert all(one != two for one, two in zip(row_orders(1, [4]), row_orders(2, [4]), strict=True))


def domains_in_turn(seed: int, segments: int) -> list[tuple[int, ...]]:
    """The order of the domains in each of several segments that want the same of each."""
    mixture = Mixture(THREE, global_batch=1, seed=seed)
    orders = []
    for _ in range(segments):
        segment = mixture.plan_segment({"a": 0.5, "b": 0.25, "c": 0.25}, 16)
        orders.append(tuple(int(segment.batch(index)[0][0]) for index in range(16)))
        mixture.advance(segment)
    return orders


def test_domains_take_turns_differently_in_every_segment_and_for_every_seed() -> None:
    first, second = (domains_in_turn(seed, 6) for seed in (0, 1))
    assert all(sorted(order) == sorted(first[0]) for order in first + second)
    # There are few such orders, so that some may come twice.
    assert len(set(first)) >= 3
    assert first != second


def test_what_an_earlier_phase_owed_a_domain_is_given_in_the_next() -> None:
    earlier = Mixture({"big": 1000, "small": 1000}, global_batch=4, seed=0)
    ratio = {"big": 0.99, "small": 0.01}
    for _ in range(12):
        earlier.advance(earlier.plan_segment(ratio, 1))
    assert earlier.consumed["small"] == 0  # it is owed 0.48 of a block
    later = Mixture({"big": 1000, "small": 1000}, global_batch=4, seed=0)
    later.continue_from(json.loads(json.dumps(earlier.state_dict())))
    for _ in range(12):
        later.advance(later.plan_segment(ratio, 1))
    assert later.consumed == {"big": 95, "small": 1}
    assert later.realised_share == pytest.approx(ratio, abs=0.01)
