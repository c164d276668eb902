"""The tests say what scipy says, and find a difference where there is none one time in twenty."""

import numpy as np
import pytest
from scipy import stats

from drpruning.evaluation.significance import compare_pairs, paired_bootstrap, paired_t_test


def scores(seed: int, pairs: int, difference: float = 0.0) -> tuple[list[float], list[float]]:
    """Two series that share what is hard, as two models do on the same tasks."""
    rng = np.random.default_rng(seed)
    shared = rng.uniform(0.2, 0.8, pairs)
    first, second = shared + rng.normal(0, 0.02, (2, pairs))
    return first.tolist(), (second + difference).tolist()


def test_the_t_test_is_scipys() -> None:
    first, second = scores(1, 75, 0.01)
    found, wanted = compare_pairs(first, second), stats.ttest_rel(second, first)
    assert found.t_test.t == pytest.approx(wanted.statistic)
    assert found.t_test.p == pytest.approx(wanted.pvalue)
    assert found.pairs == 75
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first))


def test_the_bootstrap_is_scipys_but_for_the_draws() -> None:
    first, second = scores(2, 60, 0.01)
    differences = np.subtract(second, first)
    found = paired_bootstrap([differences])
    wanted = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=3
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.03 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.03 * width)


def test_both_are_wrong_once_in_twenty_where_there_is_no_difference() -> None:
    found = [compare_pairs(*scores(seed, 75), draws=400) for seed in range(600)]
    t_tests = np.mean([each.t_test.p < 0.05 for each in found])
    bootstraps = np.mean([each.bootstrap.p < 0.05 for each in found])
    covered = np.mean([each.bootstrap.low <= 0 <= each.bootstrap.high for each in found])
    # Of 600 trials at 5% between 3.2% and 6.8% with probability 0.95; seeds are fixed.
    assert 0.03 < t_tests < 0.07
    assert 0.03 < bootstraps < 0.07
    assert 0.92 < covered < 0.97


def test_both_find_a_difference_that_is_there() -> None:
    found = compare_pairs(*scores(4, 75, 0.02))
    assert found.t_test.p < 1e-4
    assert found.bootstrap.p < 1e-3
    assert found.bootstrap.low > 0


def test_equal_models_do_not_differ() -> None:
    found = compare_pairs([0.5, 0.25, 1.0], [0.5, 0.25, 1.0])
    assert np.isnan(found.t_test.t)
    assert (found.difference, found.bootstrap.low, found.bootstrap.high) == (0, 0, 0)
    assert found.bootstrap.p == 1


def test_one_pair_is_too_few_for_a_t_test() -> None:
    assert np.isnan(compare_pairs([0.5], [0.6]).t_test.p)
    assert np.isnan(paired_t_test(np.array([0.1])).t)


def test_the_order_of_the_models_turns_the_signs_only() -> None:
    first, second = scores(5, 40, 0.005)
    one, other = compare_pairs(first, second), compare_pairs(second, first)
    assert one.difference == pytest.approx(-other.difference)
    assert one.t_test.p == pytest.approx(other.t_test.p)
    assert one.bootstrap.p == pytest.approx(other.bootstrap.p, abs=0.01)


def test_documents_vary_within_their_tasks() -> None:
    # A task in which every document has the same difference adds nothing to the variation, though
    # that task differs much from the other.
    rng = np.random.default_rng(6)
    varying, constant = rng.choice([-1.0, 0.0, 1.0], 400), np.full(50, 0.5)
    alone, both = paired_bootstrap([varying]), paired_bootstrap([varying, constant])
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=0.05)
    assert both.low == pytest.approx((alone.low + 0.5) / 2, abs=0.01)


@pytest.mark.parametrize(("first", "second"), [([], []), ([0.5], [0.5, 0.6])])
def test_what_is_no_pair_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        compare_pairs(first, second)
