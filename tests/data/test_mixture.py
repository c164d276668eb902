import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.data import Mixture, keyed_permutation

RATIO = {"a": 0.5, "b": 0.3, "c": 0.2}
SIZES = {"a": 40, "b": 1000, "c": 7}


def batches(segment):
    return [segment.batch(i) for i in range(segment.steps)]


def same(left, right):
    pairs = zip(left, right, strict=True)
    return all((x == y).all() for p, q in pairs for x, y in zip(p, q, strict=True))


@given(st.integers(1, 3000), st.integers(), st.integers(0, 2**40))
def test_permutation_is_a_bijection(size, key, epoch):
    image = keyed_permutation(size, key)(np.arange(size), epoch)
    assert sorted(image.tolist()) == list(range(size))


def test_permutation_depends_on_key_and_epoch_and_on_nothing_else():
    indices = np.arange(500)
    image = keyed_permutation(500, (3, "cc"))(indices)
    assert (keyed_permutation(500, (3, "cc"))(indices) == image).all()
    assert (keyed_permutation(500, (3, "cc"))(indices[::-1])[::-1] == image).all()
    assert (keyed_permutation(500, (4, "cc"))(indices) != image).any()
    assert (keyed_permutation(500, (3, "c4"))(indices) != image).any()
    assert (keyed_permutation(500, (3, "cc"))(indices, 1) != image).any()


def test_permutation_scatters_neighbours():
    size = 10_000
    image = keyed_permutation(size, 0)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 0.05
    # For independent uniform places the mean distance is a third of the size.
    assert np.abs(np.diff(image)).mean() == pytest.approx(size / 3, rel=0.05)
    # Fixed points are Poisson with mean 1.
    assert (image == np.arange(size)).sum() < 8


def test_permutation_spreads_each_element_evenly_over_epochs():
    size, epochs = 6, 6000
    images = keyed_permutation(size, 1)(np.zeros(epochs, dtype=np.int64), np.arange(epochs))
    counts = np.bincount(images, minlength=size)
    assert np.abs(counts - epochs / size).max() < 6 * np.sqrt(epochs / size)


@pytest.mark.parametrize("index", [-1, 10])
def test_permutation_refuses_indices_outside(index):
    with pytest.raises(IndexError):
        keyed_permutation(10, 0)(np.array([index]))


def test_a_billion_blocks_cost_arithmetic_only():
    sizes = {"a": 10**9, "b": 10**9}
    mixture = Mixture(sizes, global_batch=8, seed=0)
    segment = mixture.plan_segment({"a": 0.9, "b": 0.1}, steps=50)
    held = [v for o in (mixture, segment) for v in vars(o).values() if isinstance(v, np.ndarray)]
    assert max(array.size for array in held) == 400
    domain, block = map(np.concatenate, zip(*batches(segment), strict=True))
    assert block.max() > 10**8
    assert len(set(zip(domain.tolist(), block.tolist(), strict=True))) == 400


def test_every_block_comes_exactly_once_an_epoch_and_epochs_are_reshuffled():
    mixture = Mixture({"a": 30, "b": 17}, global_batch=6, seed=5)
    seen = {0: [], 1: []}
    for _ in range(20):
        segment = mixture.plan_segment({"a": 0.75, "b": 0.25}, steps=7)
        for domain, block in batches(segment):
            for index in seen:
                seen[index] += sorted(block[domain == index].tolist())
        mixture.advance(segment)
    assert mixture.epochs["a"] > 10
    whole = Mixture({"a": 30}, global_batch=30, seed=5).plan_segment({"a": 1.0}, steps=5)
    epochs = [block for _, block in batches(whole)]
    assert all(sorted(epoch.tolist()) == list(range(30)) for epoch in epochs)
    counts = {index: np.bincount(blocks) for index, blocks in seen.items()}
    assert all(count.max() - count.min() <= 1 for count in counts.values())


def test_blocks_walk_through_epochs_in_different_orders():
    mixture = Mixture({"a": 12}, global_batch=1, seed=0)
    segment = mixture.plan_segment({"a": 1.0}, steps=36)
    blocks = [int(block[0]) for _, block in batches(segment)]
    epochs = [tuple(blocks[i : i + 12]) for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(epochs)) == 3


@given(st.data())
def test_shares_follow_any_sequence_of_ratios_within_one_block(data):
    names = [f"d{i}" for i in range(data.draw(st.integers(1, 6)))]
    batch = data.draw(st.integers(1, 9))
    mixture = Mixture(dict.fromkeys(names, 11), batch, seed=data.draw(st.integers(0, 9)))
    wanted = dict.fromkeys(names, 0.0)
    for _ in range(data.draw(st.integers(1, 12))):
        steps = data.draw(st.integers(len(names), 20))
        weights = [data.draw(st.floats(0, 1)) for _ in names]
        total = steps * batch
        free = 1 - len(names) / total  # every domain is to get a block at least
        scale = sum(weights)
        shares = [1 / total + free * (w / scale if scale else 1 / len(names)) for w in weights]
        ratio = dict(zip(names, shares, strict=True))
        segment = mixture.plan_segment(ratio, steps)
        mixture.advance(segment)
        for name in names:
            wanted[name] += ratio[name] * total
            assert abs(mixture.consumed[name] - wanted[name]) < 1 + 1e-6
        assert sum(segment.counts.values()) == total


@given(st.lists(st.lists(st.sampled_from([0.0, 0.01, 1.0]), min_size=4, max_size=4), max_size=15))
def test_shares_of_zero_never_break_the_batch_size(weights):
    mixture = Mixture(dict.fromkeys("abcd", 5), global_batch=3, seed=0)
    for row in weights:
        if not sum(row):
            continue
        segment = mixture.plan_segment(
            {n: w / sum(row) for n, w in zip("abcd", row, strict=True)}, 1
        )
        assert sum(segment.counts.values()) == 3
        assert min(segment.counts.values()) >= 0
        assert all(abs(owed) < 3 for owed in segment.carry.values())
        mixture.advance(segment)


def test_a_small_share_gets_its_block_in_time():
    mixture = Mixture({"big": 100, "small": 100}, global_batch=4, seed=0)
    for _ in range(25):
        mixture.advance(mixture.plan_segment({"big": 0.99, "small": 0.01}, 1))
    assert mixture.consumed == {"big": 99, "small": 1}
    assert mixture.realised_share == {"big": 0.99, "small": 0.01}


def test_rounding_of_the_ratio_does_not_decide_between_equal_shares():
    sizes = {"a": 100, "b": 100, "c": 100}
    ratios = [
        {"a": 0.8, "b": 0.1, "c": 0.1},
        {"a": 0.8 + 3e-16, "b": 0.1 + 3e-17, "c": 0.1 - 3e-17},
        {"a": 0.8 - 3e-16, "b": 0.1 - 3e-17, "c": 0.1 + 3e-17},
    ]
    for steps in (1, 2, 3, 7):
        counts = [Mixture(sizes, 8, seed=0).plan_segment(r, steps).counts for r in ratios]
        assert counts[0] == counts[1] == counts[2]


def test_domains_are_spread_evenly_inside_a_segment():
    segment = Mixture(SIZES, global_batch=20, seed=2).plan_segment(RATIO, 30)
    counts = np.array([np.bincount(domain, minlength=3) for domain, _ in batches(segment)])
    drift = np.cumsum(counts, axis=0) - np.outer(np.arange(1, 31), [10, 6, 4])
    assert np.abs(drift).max() <= 2
    assert segment.realised_share == pytest.approx(RATIO)


def test_rows_of_a_batch_are_shuffled():
    first, second = batches(Mixture(SIZES, global_batch=64, seed=2).plan_segment(RATIO, 2))
    assert (first[0] != second[0]).any()
    # A rank that takes a half of the rows sees every domain.
    assert set(first[0][:32]) == set(first[0][32:]) == {0, 1, 2}


def test_rows_are_shuffled_by_the_step_of_the_run_not_by_the_place_in_the_segment():
    ratio = {"a": 1.0}  # of one domain, so that a batch has the same blocks in every segmentation
    whole = batches(Mixture({"a": 1000}, global_batch=64, seed=2).plan_segment(ratio, 6))
    mixture, in_parts = Mixture({"a": 1000}, global_batch=64, seed=2), []
    for steps in (1, 3, 2):
        segment = mixture.plan_segment(ratio, steps)
        in_parts += batches(segment)
        mixture.advance(segment)
    assert same(whole, in_parts)
    unshuffled = keyed_permutation(1000, ("order", 2, "a"))(np.arange(6 * 64)).reshape(6, 64)
    orders = set()
    for (_, block), row in zip(whole, unshuffled, strict=True):
        assert sorted(block.tolist()) == sorted(row.tolist())
        orders.add(tuple(row.tolist().index(index) for index in block.tolist()))
    assert len(orders) == 6
    assert tuple(range(64)) not in orders


def test_plan_is_pure_and_does_not_depend_on_how_it_is_consumed():
    mixture = Mixture(SIZES, global_batch=8, seed=3)
    before = mixture.state_dict()
    segment = mixture.plan_segment(RATIO, 10)
    forward = batches(segment)
    backward = [segment.batch(i) for i in reversed(range(10))][::-1]
    assert same(forward, backward)
    assert mixture.state_dict() == before
    assert same(forward, batches(mixture.plan_segment(RATIO, 10)))
    assert not same(forward, batches(Mixture(SIZES, 8, seed=4).plan_segment(RATIO, 10)))


def test_saved_state_continues_bit_for_bit_across_epochs():
    ratios = [RATIO, {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}] * 3

    def run(mixture, todo):
        out = []
        for ratio in todo:
            segment = mixture.plan_segment(ratio, 7)
            out += batches(segment)
            mixture.advance(segment)
        return out

    whole = Mixture(SIZES, global_batch=5, seed=1)
    expected = run(whole, ratios)
    first, second = Mixture(SIZES, 5, seed=1), Mixture(SIZES, 5, seed=1)
    head = run(first, ratios[:4])
    assert first.epochs["c"] > 1
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), sort_keys=True)))
    # Interrupted within a segment: planned again from its start, the steps done are skipped.
    interrupted = second.plan_segment(ratios[4], 7)
    resumed = [interrupted.batch(i) for i in range(3, 7)]
    skipped = 4 * 7 + 3
    second.advance(interrupted)
    assert same(head, expected[: 4 * 7])
    assert same(resumed + run(second, ratios[5:]), expected[skipped:])
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Mixture({**SIZES, "a": 41}, 5, 1), "sizes"),
        (Mixture({"b": 1000, "a": 40, "c": 7}, 5, 1), "sizes"),
        (Mixture({"a": 40, "b": 1000}, 5, 1), "sizes"),
        (Mixture(SIZES, 6, 1), "global_batch"),
        (Mixture(SIZES, 5, 2), "seed"),
    ],
)
def test_state_of_other_data_is_refused(other, field):
    mixture = Mixture(SIZES, 5, 1)
    with pytest.raises(ValueError, match=field):
        mixture.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="version"):
        mixture.load_state_dict({**mixture.state_dict(), "version": 99})


def test_a_later_phase_reads_on_where_the_earlier_stopped():
    earlier = Mixture({"a": 60}, global_batch=5, seed=1)
    segment = earlier.plan_segment({"a": 1.0}, 5)
    earlier.advance(segment)
    later = Mixture({"a": 60}, global_batch=7, seed=1)
    later.continue_from(json.loads(json.dumps(earlier.state_dict())))
    assert later.step == 0
    read = [block for _, block in batches(segment) + batches(later.plan_segment({"a": 1.0}, 5))]
    assert sorted(np.concatenate(read).tolist()) == list(range(60))
    with pytest.raises(ValueError, match="seed"):
        Mixture({"a": 60}, 7, seed=2).continue_from(earlier.state_dict())


def test_advance_refuses_a_segment_from_elsewhere():
    mixture = Mixture(SIZES, 5, 1)
    segment = mixture.plan_segment(RATIO, 2)
    mixture.advance(segment)
    with pytest.raises(ValueError, match="starts at step 0"):
        mixture.advance(segment)
    with pytest.raises(ValueError, match="other domains"):
        Mixture({"x": 3}, 5, 1).advance(segment)


@pytest.mark.parametrize(
    "ratio",
    [
        {"a": 0.5, "b": 0.5},
        {"a": 0.5, "b": 0.3, "c": 0.3},
        {"a": 1.5, "b": -0.3, "c": -0.2},
        {"a": float("nan"), "b": 0.3, "c": 0.2},
    ],
)
def test_bad_ratios_are_refused(ratio):
    with pytest.raises(ValueError):
        Mixture(SIZES, 5, 1).plan_segment(ratio, 2)


@pytest.mark.parametrize(("sizes", "batch"), [({}, 4), ({"a": 0}, 4), ({"a": 3}, 0)])
def test_bad_mixtures_are_refused(sizes, batch):
    with pytest.raises(ValueError):
        Mixture(sizes, batch, 0)
    with pytest.raises(ValueError, match="at least one step"):
        Mixture({"a": 3}, 4, 0).plan_segment({"a": 1.0}, 0)
