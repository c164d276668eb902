"""worst_case_ratio and project_to_bounds: exact, and within their constraints."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.scheduling import divergence, project_to_bounds, worst_case_ratio

REDPAJAMA = np.array([67, 15, 4.5, 4.5, 4.5, 2.5, 2]) / 100  # cc c4 github book wiki arxiv stack


def random_problem(rng):
    """Scores, reference ratio, rho and a floor, not necessarily feasible."""
    n = int(rng.integers(2, 51))
    p = np.maximum(rng.dirichlet(np.full(n, rng.choice([1.0, 10.0]))), 1e-4)
    p /= p.sum()
    scores = rng.normal(size=n)
    kind = rng.integers(4)
    if kind == 1:
        scores = 10 ** rng.uniform(-6, 6, n) * rng.choice([-1, 1], n)
    elif kind == 2:
        scores = np.round(scores)
    floor = [0.0, p.min(), rng.uniform() / n, p * rng.uniform(0, 1, n), p.copy()][rng.integers(5)]
    return scores, p, 10 ** rng.uniform(-3, 1), floor


def convex_solver(scores, p, rho, floor):
    """The same problem for Clarabel, with scores in [0, 1]; None if infeasible."""
    width = np.ptp(scores)
    scaled = (scores - scores.min()) / (width if width > 0 else 1)
    q = cp.Variable(len(p))
    ball = cp.sum_squares(cp.multiply(1 / np.sqrt(p), q - p)) <= 2 * rho
    problem = cp.Problem(cp.Maximize(scaled @ q), [cp.sum(q) == 1, q >= floor, ball])
    tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solver may stop short of these tolerances
        problem.solve(solver=cp.CLARABEL, **tight)
    return scaled, q.value


def assert_within(q, p, rho, floor):
    assert q.dtype == np.float64
    assert abs(q.sum() - 1) <= 1e-12
    assert np.all(q >= np.asarray(floor) - 1e-12)
    assert divergence(q, p) <= rho + 1e-12


def assert_agreement_with_a_solver(count, seed):
    rng = np.random.default_rng(seed)
    compared = 0
    while compared < count:
        scores, p, rho, floor = random_problem(rng)
        try:
            q = worst_case_ratio(scores, p, rho, floor)
        except ValueError:
            assert convex_solver(scores, p, rho, floor)[1] is None
            continue
        scaled, expected = convex_solver(scores, p, rho, floor)
        assert_within(q, p, rho, floor)
        assert abs(scaled @ q - scaled @ expected) <= 1e-9
        compared += 1


def test_agrees_with_a_convex_solver():
    assert_agreement_with_a_solver(100, seed=0)


@pytest.mark.slow
def test_agrees_with_a_convex_solver_on_many_problems():
    assert_agreement_with_a_solver(1000, seed=1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_beats_every_feasible_point(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 20))
    p = np.maximum(rng.dirichlet(np.ones(n)), 1e-6)
    p /= p.sum()
    floor, rho = p.min() * rng.uniform(), 10 ** rng.uniform(-3, 1)
    scores = rng.normal(size=n) * 10 ** rng.uniform(-6, 6, n)
    q = worst_case_ratio(scores, p, rho, floor)
    assert_within(q, p, rho, floor)
    others = np.maximum(rng.dirichlet(np.ones(n), size=50), floor)
    others /= others.sum(axis=1, keepdims=True)
    direction = others - p
    scale = np.array([np.sqrt(rho / max(divergence(o, p), 1e-300)) for o in others])
    feasible = p + np.minimum(scale, 1)[:, None] * direction
    feasible = feasible[np.all(feasible >= floor, axis=1)]
    assert len(feasible) == 0 or (feasible @ scores).max() <= q @ scores + 1e-9 * np.ptp(scores)


@given(st.integers(0, 2**32 - 1), st.floats(-100, 100), st.floats(1e-3, 1e3))
@settings(max_examples=100)
def test_shift_and_scale_of_the_scores_change_nothing(seed, shift, scale):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 20))
    p = rng.dirichlet(np.full(n, 5.0))
    scores = rng.normal(size=n)
    q = worst_case_ratio(scores, p, 0.1)
    np.testing.assert_allclose(worst_case_ratio(scale * scores + shift, p, 0.1), q, atol=1e-9)


def test_two_domains_by_hand():
    # q = (0.5 + d, 0.5 - d): divergence 2 * d**2 = 0.02
    np.testing.assert_allclose(
        worst_case_ratio([1, 0], [0.5, 0.5], 0.02, floor=0.1), [0.6, 0.4], atol=1e-14
    )
    np.testing.assert_allclose(
        worst_case_ratio([1, 0], [0.5, 0.5], 10, floor=0.1), [0.9, 0.1], atol=1e-14
    )


def test_ball_that_does_not_bind():
    q = worst_case_ratio([1, 0.5, 0.2, 0.1, 0, -0.3, -0.2], REDPAJAMA, rho=0.2, floor=0.02)
    np.testing.assert_allclose(q, [0.88] + [0.02] * 6, atol=1e-14)
    assert divergence(q, REDPAJAMA) == pytest.approx(0.11, abs=0.001)


def test_ties_share_at_the_smallest_divergence():
    p = np.array([0.4, 0.2, 0.3, 0.1])
    q = worst_case_ratio([1, 1, 0, 0], p, rho=5, floor=0.05)
    np.testing.assert_allclose(q, [0.6, 0.3, 0.05, 0.05], atol=1e-14)


def test_the_whole_radius_is_used_where_it_limits_the_ratio():
    q = worst_case_ratio([0, 1, 2, 3, 4, 5, 6], REDPAJAMA, rho=0.1)
    assert divergence(q, REDPAJAMA) == pytest.approx(0.1, abs=1e-13)
    assert q.min() >= 0.02


@pytest.mark.parametrize("floor", [None, 0.0, 0.01])
def test_equal_scores_give_the_reference_ratio(floor):
    for scores in (np.zeros(7), np.full(7, 3.3)):
        q = worst_case_ratio(scores, REDPAJAMA, 0.1, floor)
        np.testing.assert_allclose(q, REDPAJAMA, atol=1e-15)


def test_floor_above_the_reference_is_met_at_the_smallest_divergence():
    q = worst_case_ratio(np.zeros(3), [0.8, 0.15, 0.05], 1.0, floor=0.1)
    np.testing.assert_allclose(q[2], 0.1)
    np.testing.assert_allclose(q[:2] / q[:2].sum(), np.array([0.8, 0.15]) / 0.95)


def test_floor_that_leaves_nothing_free():
    p = np.full(4, 0.25)
    np.testing.assert_allclose(worst_case_ratio([3, 1, 2, 0], p, 0.1), p, atol=1e-15)
    single = worst_case_ratio([2.0], [1.0], 0.1)
    assert single.tolist() == [1.0]


@pytest.mark.parametrize(
    ("scores", "p", "rho", "floor", "message"),
    [
        ([1, 0], [0.5, 0.5], 0.1, 0.6, "more than 1"),
        ([1, 0], [0.9, 0.1], 0.01, 0.4, "lower the floor or raise rho"),
        ([1, 0], [0.5, 0.6], 0.1, None, "sum to 1"),
        ([1, 0], [1.0, 0.0], 0.1, None, "positive"),
        ([1, np.nan], [0.5, 0.5], 0.1, None, "finite"),
        ([1, 0, 2], [0.5, 0.5], 0.1, None, "2 finite numbers"),
        ([1, 0], [0.5, 0.5], -1, None, "rho"),
        ([1, 0], [0.5, 0.5], 0.1, -0.1, "floor"),
        ([1, 0], [0.5, 0.5], 0.1, [0.1, 0.1, 0.1], "floor"),
    ],
)
def test_impossible_input_is_refused(scores, p, rho, floor, message):
    with pytest.raises(ValueError, match=message):
        worst_case_ratio(scores, p, rho, floor)


def test_ten_thousand_domains_stay_within_their_constraints():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(10_000, 5.0))
    q = worst_case_ratio(rng.normal(size=10_000), p, 0.1)
    assert_within(q, p, 0.1, p.min())
    assert divergence(q, p) == pytest.approx(0.1, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_projection_meets_its_optimality_conditions(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    base = rng.dirichlet(np.ones(n))
    lower, upper = base / 2, base * 2
    values = base + rng.normal(size=n) * rng.choice([1e-3, 0.1, 10])
    x = project_to_bounds(values, lower, upper)
    assert abs(x.sum() - 1) <= 1e-12
    assert np.all((x >= lower) & (x <= upper))
    shift = values - x  # tau where free, below it at the lower bound, above it at the upper
    free = (x > lower + 1e-12) & (x < upper - 1e-12)
    if free.any():
        tau = shift[free].mean()
        assert np.allclose(shift[free], tau, atol=1e-9)
        assert np.all(shift[x <= lower + 1e-12] <= tau + 1e-9)
        assert np.all(shift[x >= upper - 1e-12] >= tau - 1e-9)


def test_projection_leaves_a_feasible_point_and_refuses_the_impossible():
    np.testing.assert_allclose(project_to_bounds([0.2, 0.8], 0, 1), [0.2, 0.8], atol=1e-15)
    with pytest.raises(ValueError, match="sums to 1"):
        project_to_bounds([0.5, 0.5], 0, 0.4)
    with pytest.raises(ValueError, match="exceeds"):
        project_to_bounds([0.5, 0.5], [0.6, 0], [0.5, 1])
