"""How far the ratio goes: only as far as the scores give evidence, and never below the floors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.scheduling import PAPER_SETTINGS, DRPruning, divergence, worst_case_ratio

FIXED = PAPER_SETTINGS | {"forecast": "never", "moving_reference": False}


def problem(seed):
    """A reference ratio, scores and settings, as random as they may be."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    p = np.maximum(rng.dirichlet(np.full(n, rng.choice([1.0, 5.0]))), 1e-3)
    p /= p.sum()
    scores = rng.normal(size=n) * 10 ** rng.uniform(-4, 1)
    floor = [None, 0.0, float(p.min() / 2)][rng.integers(3)]
    rho = float(10 ** rng.uniform(-2, 0.5))
    return [f"d{i}" for i in range(n)], p, scores, floor, rho


def decided(names, p, scores, **options):
    ratio = dict(zip(names, p.tolist(), strict=True))
    reference = dict.fromkeys(names, 5.0)
    policy = DRPruning(ratio, 100, **(FIXED | {"reference_loss": reference} | options))
    losses = dict(zip(names, (5.0 + scores).tolist(), strict=True))
    return policy.update(10, losses)


@given(seed=st.integers(0, 2**32 - 1), tau=st.floats(1e-3, 10))
@settings(max_examples=150, deadline=None)
def test_it_never_goes_further_than_rho_and_the_evidence_allow(seed, tau):
    names, p, scores, floor, rho = problem(seed)
    decision = decided(names, p, scores, floor=floor, rho=rho, tau=tau)
    scores = np.array(list(decision.excess.values()))
    variance = p @ (scores - p @ scores) ** 2
    radius = min(rho, variance / (2 * tau**2))
    assert decision.explanation.radius == pytest.approx(radius, rel=1e-6, abs=1e-15)
    assert decision.explanation.rho == rho
    found = np.array(list(decision.ratio.values()))
    assert divergence(found, p) <= radius * (1 + 1e-6) + 1e-12
    expected = worst_case_ratio(scores, p, decision.explanation.radius, floor)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # With a tilt of 1 / tau, no domain gains more than its score above the mean over tau.
    mean = float(p @ scores)
    if np.all(found > np.asarray(p.min() if floor is None else floor) * (1 + 1e-9)):
        assert np.all(found <= p * (1 + (scores - mean) / tau) + 1e-9) or radius == rho


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_without_tau_every_difference_fills_the_ball(seed):
    names, p, scores, floor, rho = problem(seed)
    decision = decided(names, p, scores, floor=floor, rho=rho, tau=0.0)
    excess = np.array(list(decision.excess.values()))
    expected = worst_case_ratio(excess, p / p.sum(), rho, floor)
    np.testing.assert_allclose(list(decision.ratio.values()), expected, atol=1e-12)
    assert decision.explanation.radius == rho


def test_a_ratio_on_a_smaller_ball_has_reached_its_limit():
    decision = decided(["a", "b"], np.array([0.5, 0.5]), np.array([0.0, 0.02]), floor=0.0, tau=0.05)
    assert decision.explanation.divergence == pytest.approx(0.02)
    assert decision.explanation.radius == pytest.approx(0.02)
    assert decision.explanation.limit_reached
    assert decision.ratio["b"] == pytest.approx(0.5 * (1 + 0.01 / 0.05))


def test_without_a_new_ratio_the_radius_is_rho_resumed_or_not():
    names = ["a", "b"]
    options = FIXED | {"reference_loss": dict.fromkeys(names, 2.0), "floor": 0.0, "tau": 0.05}
    policy, resumed = (DRPruning(dict.fromkeys(names, 0.5), 100, **options) for _ in range(2))
    assert policy.update(0, {"a": 2.0, "b": 2.02}).explanation.radius == pytest.approx(0.02)
    resumed.load_state_dict(policy.state_dict())
    for decision in (p.update(10, {"a": 2.0, "b": None}) for p in (policy, resumed)):
        assert not decision.explanation.ratio_updated
        assert decision.explanation.radius == options["rho"]


def test_noise_alone_moves_the_ratio_little():
    """Losses that differ by evaluation noise only: without evidence the ratio is all churn."""
    names, p = ["a", "b", "c", "d"], np.array([0.6, 0.2, 0.15, 0.05])
    ratio, reference = dict(zip(names, p.tolist(), strict=True)), dict.fromkeys(names, 2.0)
    churn = {}
    for tau in (0.0, 0.05):
        rng = np.random.default_rng(0)
        options = FIXED | {"reference_loss": reference, "rho": 0.5, "floor": 0.01, "tau": tau}
        policy = DRPruning(ratio, 1000, **options)
        found = [
            policy.update(step, {d: 2.2 + 3e-3 * rng.normal() for d in names}).explanation.churn
            for step in range(0, 1000, 20)
        ]
        churn[tau] = np.mean(found[1:])
    assert churn[0.0] > 0.4
    assert churn[0.05] < churn[0.0] / 5


def test_where_the_evidence_is_less_than_the_floors_need_the_nearest_ratio_is_taken():
    p, floor = np.array([0.9, 0.1]), 0.2
    decision = decided(["a", "b"], p, np.array([1e-6, 0.0]), floor=floor, rho=0.5, tau=1.0)
    assert decision.ratio == pytest.approx({"a": 0.8, "b": 0.2})
    assert decision.explanation.ratio_updated
    assert decision.explanation.radius < decision.explanation.divergence < 0.5
    equal = decided(["a", "b"], p, np.array([0.0, 0.0]), floor=floor, rho=0.5, tau=1.0)
    assert equal.ratio == pytest.approx({"a": 0.8, "b": 0.2})
    assert equal.explanation.radius == 0


@given(seed=st.integers(0, 2**32 - 1), relative=st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_no_share_falls_below_its_part_of_the_reference_share(seed, relative):
    names, p, scores, floor, rho = problem(seed)
    decision = decided(names, p, scores, floor=floor, rho=rho, relative_floor=relative)
    own = p.min() if floor is None else floor
    smallest = np.maximum(own, relative * p)
    found = np.array(list(decision.ratio.values()))
    assert np.all(found >= smallest - 1e-12)
    np.testing.assert_allclose(list(decision.explanation.floor.values()), smallest, rtol=1e-12)
    at_floor = np.array(list(decision.explanation.at_floor.values()))
    np.testing.assert_array_equal(at_floor, found <= smallest * (1 + 1e-9))


def test_the_relative_floor_follows_the_reference_ratio():
    ratio, reference = {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0}
    options = FIXED | {"moving_reference": True, "reference_start": 0.0, "delta": 0.5, "rho": 2.0}
    policy = DRPruning(
        ratio,
        100,
        **(options | {"reference_loss": reference, "floor": 0.0, "relative_floor": 0.2}),
    )
    before = ratio
    for step in range(0, 100, 10):
        decision = policy.update(step, {"a": 1.0, "b": 2.0})
        assert decision.ratio["a"] == pytest.approx(0.2 * before["a"])
        before = decision.reference_ratio
    assert before["a"] < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -0.1}, "tau must be at least 0, not -0.1"),
        ({"tau": float("nan")}, "tau must be at least 0"),
        ({"tau": float("inf")}, "tau must be at least 0"),
        ({"relative_floor": 1.1}, "relative_floor must lie between 0 and 1, not 1.1"),
        ({"relative_floor": -0.1}, "relative_floor must lie between 0 and 1"),
        ({"floor": {"a": 0.7, "b": 0.1}, "relative_floor": 0.8}, "the floors sum to 1.1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        DRPruning({"a": 0.5, "b": 0.5}, 100, **(FIXED | options))


def test_where_the_ratio_stays_a_policy_and_its_state_say_the_same_radius():
    settings = {"tau": 5.0, "forecast": "never", "reference_loss": {"a": 1.0, "b": 1.0}}
    policy, loaded = (DRPruning({"a": 0.7, "b": 0.3}, 100, **settings) for _ in range(2))
    assert policy.update(0, {"a": 1.1, "b": 1.2}).explanation.radius < policy.rho
    loaded.load_state_dict(policy.state_dict())
    stays = policy.update(10, {"a": 1.1})
    assert not stays.explanation.ratio_updated
    assert stays.explanation.radius == policy.rho
    assert loaded.update(10, {"a": 1.1}) == stays
