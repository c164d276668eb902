"""Domains that are exhausted: they repeat, hand their share on, or end the phase."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.data import Mixture

RATIO = {"a": 0.5, "b": 0.3, "c": 0.2}


def read(segment):
    """Every (domain, block) that a segment gives."""
    pairs = [segment.batch(index) for index in range(segment.steps)]
    names = np.concatenate([[segment.domains[i] for i in domain] for domain, _ in pairs])
    return list(
        zip(names.tolist(), np.concatenate([ids for _, ids in pairs]).tolist(), strict=True)
    )


def walk(mixture, ratio, steps):
    """Segments of `steps` until nothing is left, or 20 of them."""
    for _ in range(20):
        if mixture.exhausted() is not None:
            return
        segment = mixture.plan_segment(ratio, steps)
        mixture.advance(segment)
        yield segment


def test_a_domain_that_redistributes_is_read_once_and_the_others_share_what_it_had():
    sizes = {"a": 10_000, "b": 10_000, "c": 50}
    mixture = Mixture(sizes, 10, seed=1, on_exhausted={"c": "redistribute"})
    segments = list(walk(mixture, RATIO, 10))
    seen = Counter(pair for segment in segments for pair in read(segment))
    assert {block for name, block in seen if name == "c"} == set(range(50))
    assert max(seen.values()) == 1
    assert [s.counts["c"] for s in segments[:4]] == [20, 20, 10, 0]
    assert [s.used_up for s in segments[:4]] == [{}, {}, {"c": "redistribute"}, {}]
    assert segments[2].realised_share == pytest.approx(
        {"a": 0.5625, "b": 0.3375, "c": 0.1}, abs=0.01
    )
    assert segments[3].realised_share == pytest.approx({"a": 0.625, "b": 0.375, "c": 0}, abs=0.01)
    given = mixture.consumed
    assert given["a"] == pytest.approx(50 + 50 + 56.25 + 17 * 62.5, abs=1)
    assert sum(given.values()) == 20 * 100
    assert segments[-1].carry["c"] == 0
    assert mixture.exhausted() is None


def test_a_domain_that_stops_is_read_once_and_ends_with_its_segment():
    sizes = {"a": 10_000, "b": 10_000, "c": 50}
    mixture = Mixture(sizes, 10, seed=1, on_exhausted={"c": "stop"})
    segments = list(walk(mixture, RATIO, 10))
    assert [s.steps for s in segments] == [10, 10, 10]
    assert segments[-1].used_up == {"c": "stop"}
    assert max(Counter(p for s in segments for p in read(s)).values()) == 1
    assert mixture.exhausted() == "c exhausted (on_exhausted: stop)"


def test_a_domain_that_repeats_is_read_again_and_says_so_once():
    mixture = Mixture({"a": 9000, "b": 9000, "c": 50}, 10, seed=1)
    segments = list(walk(mixture, RATIO, 10))
    assert mixture.consumed["c"] == 20 * 20
    assert [s.used_up for s in segments if s.used_up] == [{"c": "repeat"}]
    assert mixture.exhausted() is None


def test_when_nothing_repeats_every_block_is_read_and_the_last_segment_is_shorter():
    sizes = {"a": 40, "b": 33, "c": 7}
    rules = dict.fromkeys(sizes, "redistribute")
    mixture = Mixture(sizes, 5, seed=3, on_exhausted=rules)
    segments = list(walk(mixture, RATIO, 3))
    assert [s.steps for s in segments] == [3, 3, 3, 3, 3, 1]
    assert mixture.consumed == sizes
    assert mixture.exhausted() == "all domains exhausted, and none of them repeats"
    with pytest.raises(ValueError, match="5 blocks left"):
        mixture.plan_segment(RATIO, 1)


def test_what_is_left_over_goes_to_domains_that_the_ratio_wants_nothing_of():
    mixture = Mixture({"a": 10, "b": 100}, 10, seed=0, on_exhausted={"a": "redistribute"})
    segment = mixture.plan_segment({"a": 1.0, "b": 0.0}, 3)
    assert segment.counts == {"a": 10, "b": 20}


def test_what_is_left_over_goes_to_a_domain_of_next_to_no_share():
    mixture = Mixture({"a": 1000, "b": 1}, 1, seed=0, on_exhausted={"b": "redistribute"})
    mixture.advance(mixture.plan_segment({"a": 0.5, "b": 0.5}, 1))
    segment = mixture.plan_segment({"a": 5e-324, "b": 1.0}, 2)
    assert segment.counts == {"a": 2, "b": 0}
    assert sum(segment.carry.values()) == pytest.approx(0, abs=1e-9)


@given(st.data())
def test_whatever_the_ratios_nothing_is_given_twice_and_resuming_is_exact(data):
    names = [f"d{i}" for i in range(data.draw(st.integers(1, 5)))]
    sizes = {name: data.draw(st.integers(1, 60)) for name in names}
    rules = {n: data.draw(st.sampled_from(["repeat", "redistribute", "stop"])) for n in names}
    batch, seed = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 5))
    mixture, other = (Mixture(sizes, batch, seed, rules) for _ in range(2))
    seen = Counter()
    for _ in range(data.draw(st.integers(1, 8))):
        if mixture.exhausted() is not None:
            break
        weights = [data.draw(st.floats(0, 1)) for _ in names]
        total = sum(weights)
        ratio = {
            n: w / total if total else 1 / len(names) for n, w in zip(names, weights, strict=True)
        }
        steps = data.draw(st.integers(1, 9))
        segment = mixture.plan_segment(ratio, steps)
        assert 1 <= segment.steps <= steps
        assert sum(segment.counts.values()) == segment.steps * batch
        assert sum(segment.carry.values()) == pytest.approx(0, abs=1e-6)
        other.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
        again = other.plan_segment(ratio, segment.steps)
        assert (again.counts, again.carry, read(again)) == (
            segment.counts,
            segment.carry,
            read(segment),
        )
        seen.update(read(segment))
        mixture.advance(segment)
        for name in names:
            left = sizes[name] - mixture.consumed[name]
            assert rules[name] == "repeat" or left >= 0
            assert (name in segment.used_up) == (left <= 0 < left + segment.counts[name])
    for (name, _), times in seen.items():
        assert rules[name] == "repeat" or times == 1


def test_a_later_phase_does_not_read_an_exhausted_domain_again():
    sizes, rules = {"a": 1000, "b": 20}, {"b": "redistribute"}
    earlier = Mixture(sizes, 10, 0, rules)
    list(walk(earlier, {"a": 0.5, "b": 0.5}, 2))
    later = Mixture(sizes, 25, 0, rules)
    later.continue_from(earlier.state_dict())
    assert later.plan_segment({"a": 0.5, "b": 0.5}, 2).counts == {"a": 50, "b": 0}


def test_blocks_of_a_batch_are_named():
    segment = Mixture({"a": 30, "b": 30}, 6, 0).plan_segment({"a": 0.5, "b": 0.5}, 2)
    named = segment.blocks(1)
    domains, ids = segment.batch(1)
    expected = {n: sorted(ids[domains == i].tolist()) for i, n in enumerate("ab")}
    assert named == {name: blocks for name, blocks in expected.items() if blocks}


@pytest.mark.parametrize("rules", [{"x": "repeat"}, {"a": "never"}])
def test_bad_rules_are_refused(rules):
    with pytest.raises(ValueError, match="on_exhausted"):
        Mixture({"a": 3}, 1, 0, rules)
