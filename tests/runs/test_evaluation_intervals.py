"""Intervals of losses hold what they promise, and differences are those of the textbooks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from drpruning.runs import intervals
from drpruning.runs.intervals import Domain, bootstrap, paired_differences

BLOCKS = st.lists(st.floats(0.1, 20), min_size=2, max_size=30)


def skewed(generator: np.random.Generator, count: int) -> np.ndarray:
    """Block losses of mean 3.6, with a tail of hard blocks."""
    return 3 + 0.3 * generator.gamma(2, 1, size=count)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "SAMPLES", 500)


@pytest.mark.usefixtures("few_samples")
def test_an_interval_holds_the_true_loss_in_95_of_100_cases() -> None:
    generator = np.random.default_rng(7)
    held = {"a": 0, "b": 0, "average": 0}
    for _ in range(100):
        domains = {"a": Domain.of(skewed(generator, 60)), "b": Domain.of(skewed(generator, 40) * 2)}
        each, average = bootstrap(domains)
        assert average is not None
        for name, (low, high), truth in (
            ("a", each["a"], 3.6), ("b", each["b"], 7.2), ("average", average, 5.4),
        ):  # fmt: skip
            held[name] += low <= truth <= high
    assert all(0.88 <= count / 100 <= 1.0 for count in held.values()), held


def test_it_is_scipys() -> None:
    values = skewed(np.random.default_rng(3), 50)
    found = bootstrap({"a": Domain.of(values)})[0]["a"]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(0), method="BCa"
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    generator = np.random.default_rng(5)
    size = generator.integers(100, 900, size=80).astype(float)
    bits = size * generator.normal(1.2, 0.05, size=80)
    domain = Domain.of(bits, size)
    assert domain.estimate == bits.sum() / size.sum()
    (low, high) = bootstrap({"a": domain})[0]["a"]
    assert low < domain.estimate < high
    # Bytes that vary sixfold make the sums vary, but hardly their ratio.
    assert high - low < 4 * 1.96 * 0.05 / math.sqrt(80)
    error = math.sqrt(np.square(domain.influence()).sum())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


@settings(max_examples=20)
@given(losses=st.dictionaries(st.sampled_from("abc"), BLOCKS, min_size=1))
def test_intervals_lie_within_the_data_and_move_with_it(losses: dict[str, list[float]]) -> None:
    each, average = bootstrap({name: Domain.of(found) for name, found in losses.items()})
    assert each.keys() == losses.keys()
    assert average is not None
    for name, (low, high) in each.items():
        assert min(losses[name]) - 1e-9 <= low <= high <= max(losses[name]) + 1e-9
    again, mean = bootstrap({n: Domain.of(np.array(found) + 5) for n, found in losses.items()})
    assert mean == pytest.approx((average[0] + 5, average[1] + 5), abs=1e-6)
    for name, ends in each.items():
        assert again[name] == pytest.approx((ends[0] + 5, ends[1] + 5), abs=1e-6)


def test_no_interval_is_made_from_one_block_or_from_what_is_not_finite() -> None:
    domains = {"one": [3.0], "lost": [3.0, math.nan], "same": [2.0, 2.0], "good": [1.0, 2.0, 4.0]}
    each, average = bootstrap({name: Domain.of(values) for name, values in domains.items()})
    assert each.keys() == {"same", "good"}
    assert each["same"] == (2.0, 2.0)
    assert average is None
    assert bootstrap({}) == ({}, None)


def test_it_does_not_depend_on_how_many_samples_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    domain = {"a": Domain.of(skewed(np.random.default_rng(3), 50))}
    before = bootstrap(domain)
    assert bootstrap(domain) == before, "the seed is fixed"
    monkeypatch.setattr(intervals, "_AT_ONCE", 10 * 50)
    assert bootstrap(domain) == before


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(11)
    hard = skewed(generator, 40)
    one, other = hard + generator.normal(0.02, 0.05, 40), hard + generator.normal(0, 0.05, 40)
    found, average = paired_differences({"a": one.tolist()}, {"a": other.tolist()})
    assert average == found["a"]
    theirs = stats.ttest_rel(one, other)
    assert found["a"].nats == pytest.approx(float(np.mean(one - other)))
    assert found["a"].p_t == pytest.approx(theirs.pvalue)
    assert found["a"].p_bootstrap == pytest.approx(theirs.pvalue, abs=0.02)
    assert found["a"].interval == pytest.approx(theirs.confidence_interval(0.95), abs=0.004)
    back, _ = paired_differences({"a": other.tolist()}, {"a": one.tolist()})
    assert back["a"].nats == -found["a"].nats
    assert back["a"].p_t == pytest.approx(found["a"].p_t)


@pytest.mark.usefixtures("few_samples")
def test_without_a_difference_five_in_a_hundred_are_found_all_the_same() -> None:
    generator = np.random.default_rng(2)
    false = {"t": 0, "bootstrap": 0}
    for _ in range(120):
        losses = [
            {name: (skewed(generator, count)).tolist() for name, count in (("a", 40), ("b", 25))}
            for _ in range(2)
        ]
        _, average = paired_differences(*losses)
        assert average is not None
        false["t"] += average.p_t < 0.05
        false["bootstrap"] += average.p_bootstrap < 0.05
    assert all(0.01 <= count / 120 <= 0.11 for count in false.values()), false


def test_the_average_needs_every_domain_of_both_models() -> None:
    one = {"a": [1.0, 2.0], "b": [1.0, 2.5]}
    assert paired_differences(one, one)[1] is not None
    assert paired_differences(one, one)[0]["a"].p_t == 1.0
    assert paired_differences(one, {"a": [1.0, 2.0]})[1] is None
    found, average = paired_differences(one, one | {"b": [1.0]})
    assert (found.keys(), average) == ({"a"}, None), "other blocks"
    shifted = {name: [loss + 1 for loss in losses] for name, losses in one.items()}
    assert paired_differences(shifted, one)[0]["a"].p_t == 0.0
