"""fit_loss_curves with a warm start: curves in own data, of a model that knows something."""

import numpy as np
import pytest
from curves import own_data, pruned_own_data
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.scheduling import fit_loss_curves

LAW = {"A": 0.3, "beta": 0.45, "E": 1.7, "x0": 12.0}


def law(x, *, A, beta, E, x0):
    return A * (x + x0) ** -beta + E


def warm(amounts, losses, final, *more):
    return fit_loss_curves(amounts, losses, final, *more, warm_start=True)


def covered(fit, truth):
    return np.mean((fit.low <= truth) & (truth <= fit.high))


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    A=st.floats(0.2, 3),
    beta=st.floats(0.15, 1),
    E=st.floats(0.5, 3),
    x0=st.floats(1, 50),
    further=st.floats(1, 3),
)
def test_a_law_without_noise_is_forecast_exactly(A, beta, E, x0, further):
    """Amounts are uneven, from 0 to 100."""
    x = 100 * np.linspace(0, 1, 40) ** 1.5
    params = {"A": A, "beta": beta, "E": E, "x0": x0}
    fit = warm(x, law(x, **params)[None], 100 * further)
    assert fit.forecast[0] == pytest.approx(law(100 * further, **params), abs=1e-4)
    between = np.linspace(0, 100 * further, 9)
    np.testing.assert_allclose(fit.at(between[None])[0], law(between, **params), atol=1e-3)
    assert fit.objective[0] < 1e-12


def test_the_parameters_are_recovered_in_the_unit_of_the_amounts():
    x = np.linspace(0, 400, 60)
    fit = warm(x, law(x, **LAW)[None], 500)
    found = [fit.A[0], fit.beta[0], fit.E[0], fit.offset[0]]
    np.testing.assert_allclose(found, [LAW["A"], LAW["beta"], LAW["E"], LAW["x0"]], rtol=0.03)
    falling = fit.A * (500 + fit.offset) ** -fit.beta
    np.testing.assert_allclose(falling + fit.E, fit.forecast, rtol=1e-9)


def test_parameters_while_the_model_shrinks():
    x = np.linspace(0, 400, 60)
    params = np.linspace(3e8, 1e8, 60).clip(1.5e8) - 0.5e8
    losses = 40 * params**-0.15 * (x + 12) ** -0.3 + 1.7
    fit = warm(x, losses[None], 600, params, 1e8)
    end = 40 * 1e8**-0.15 * 612**-0.3 + 1.7
    assert fit.forecast[0] == pytest.approx(end, abs=2e-3)
    assert fit.alpha[0] == pytest.approx(0.15, abs=0.03)
    factor = fit.A * 1e8**-fit.alpha
    np.testing.assert_allclose(factor * (600 + fit.offset) ** -fit.beta + fit.E, fit.at(600))


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e9])
def test_the_unit_of_the_amounts_changes_no_forecast(scale):
    amounts, losses, final, _ = own_data(np.random.default_rng(0), 20, 20, 3e-3, 0.4)
    one, other = warm(amounts, losses, final), warm(scale * amounts, losses, scale * final)
    for name in ("forecast", "low", "high", "quality", "beta", "E"):
        expected = getattr(one, name)
        np.testing.assert_allclose(getattr(other, name), expected, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(other.offset, scale * one.offset, rtol=1e-6)
    np.testing.assert_allclose(other.A, one.A * scale**one.beta, rtol=1e-5)
    np.testing.assert_allclose(other.first_step, scale * one.first_step)
    np.testing.assert_allclose(other.at(scale * final), one.at(final), rtol=1e-6)


def test_the_order_of_the_points_is_irrelevant():
    rng = np.random.default_rng(1)
    amounts, losses, final, _ = own_data(rng, 10, 24, 3e-3, 0.4)
    one = warm(amounts, losses, final)
    mixed = rng.permutation(24)
    other = warm(amounts[:, mixed], losses[:, mixed], final)
    for name in ("forecast", "low", "high", "offset", "first_step"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name), err_msg=name)


@pytest.mark.parametrize("warm_start", [False, True])
def test_the_curve_ends_at_the_forecast_where_that_is_trusted(warm_start):
    amounts, losses, final, _ = own_data(np.random.default_rng(2), 30, 24, 3e-3, 0.4)
    fit = fit_loss_curves(amounts, losses, final, warm_start=warm_start)
    inside = (fit.quality > 0) & (fit.at(final) >= fit.low) & (fit.at(final) <= fit.high)
    assert inside.mean() > 0.5 or not warm_start
    np.testing.assert_allclose(fit.at(final)[inside], fit.forecast[inside], rtol=1e-9)
    if warm_start:
        assert (inside == (fit.quality > 0)).all()


def test_shapes_of_other_amounts():
    amounts, losses, final, _ = own_data(np.random.default_rng(3), 4, 16, 1e-3, 0.4)
    losses[2] = np.nan
    fit = warm(amounts, losses, final)
    assert fit.at(0.1).shape == (4,)
    grid = fit.at(np.linspace(0, 0.4, 5)[None])
    assert grid.shape == (4, 5)
    assert (np.diff(grid[[0, 1, 3]], axis=1) <= 0).all()
    assert np.isnan(grid[2]).all()
    np.testing.assert_array_equal(fit.at(np.full((4, 1), 0.1))[:, 0], fit.at(0.1))
    np.testing.assert_array_equal(fit.at(np.full(4, 0.1)), fit.at(0.1))


def test_without_a_warm_start_there_is_no_offset_and_no_loss_at_0():
    steps = np.arange(1, 41) * 50.0
    fit = fit_loss_curves(steps, (2 + 0.3 * (steps / 4000) ** -0.4)[None], 4000)
    assert fit.offset.tolist() == [0]
    np.testing.assert_allclose(fit.at(np.array([[1000.0]])), 2 + 0.3 * 0.25**-0.4, rtol=1e-6)
    assert np.isnan(fit.at(0)).all()


def test_final_amounts_of_each_domain_are_as_if_fitted_alone():
    amounts, losses, final, _ = own_data(np.random.default_rng(4), 3, 16, 3e-3, 0.4)
    together = warm(amounts, losses, final)
    for i in range(3):
        alone = warm(amounts[i], losses[i : i + 1], final[i])
        np.testing.assert_allclose(alone.forecast[0], together.forecast[i], rtol=1e-12)
        np.testing.assert_allclose(alone.low[0], together.low[i], rtol=1e-12)


def test_a_domain_that_got_no_data_has_no_forecast():
    rng = np.random.default_rng(5)
    amounts, losses, final, _ = own_data(rng, 4, 16, 1e-3, 0.4)
    amounts[0], final[0] = 0, 0
    amounts[1] = 0.2
    fit = warm(amounts, losses, final)
    for name in ("forecast", "low", "offset", "A", "first_step", "objective"):
        assert np.isnan(getattr(fit, name)[:2]).all()
        assert np.isfinite(getattr(fit, name)[2:]).all()
    assert fit.quality[:2].tolist() == [0, 0]
    assert np.isnan(fit.at(final)[:2]).all()


@pytest.mark.parametrize("more", [0.0, 1e-9])
def test_where_no_more_data_comes_the_forecast_is_the_present_loss(more):
    amounts, losses, _, _ = own_data(np.random.default_rng(6), 40, 24, 3e-3, 0.4)
    exact = own_data(np.random.default_rng(6), 40, 24, 0.0, 0.4)[1][:, -1]
    fit = warm(amounts, losses, amounts[:, -1] + more)
    assert np.abs(fit.forecast - exact).mean() < 2e-3
    assert np.median(fit.high - fit.low) < 8e-3
    assert covered(fit, exact) > 0.8


def test_an_exhausted_domain_is_forecast_from_what_it_had():
    """Its amounts stop at a third of the evaluations; its losses then only vary by noise."""
    rng = np.random.default_rng(7)
    x = np.minimum(np.arange(30) * 10.0, 100)
    losses = law(x, **LAW) + 1e-3 * rng.normal(size=(40, 30))
    fit = warm(x, losses, 100)
    assert np.abs(fit.forecast - law(100, **LAW)).mean() < 1e-3
    more = warm(x, losses, 200)
    assert covered(more, law(200, **LAW)) > 0.75
    assert np.mean(more.first_step == 0) > 0.9


def test_few_points_have_a_forecast_but_no_interval():
    amounts, losses, final, _ = own_data(np.random.default_rng(8), 20, 4, 1e-3, 0.4)
    fit = warm(amounts, losses, final)
    assert np.isfinite(fit.forecast).all()
    assert np.isnan(fit.low).all()
    assert (fit.quality == 0).all()


def test_intervals_hold_the_end_nine_times_in_ten():
    inside = [
        covered(warm(amounts, losses, final), end)
        for m, noise, seen in [(8, 1e-2, 0.2), (20, 3e-3, 0.4), (40, 1e-3, 0.6)]
        for amounts, losses, final, end in [own_data(np.random.default_rng(m), 150, m, noise, seen)]
    ]
    assert 0.86 < np.mean(inside) < 0.96


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize(("m", "seen"), [(8, 0.2), (8, 0.6), (16, 0.4), (32, 0.2), (64, 0.6)])
def test_coverage_lies_near_nine_in_ten(m, seen, noise):
    amounts, losses, final, end = own_data(np.random.default_rng(m), 500, m, noise, seen)
    assert 0.85 <= covered(warm(amounts, losses, final), end) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-3, 1e-2])
@pytest.mark.parametrize("m", [20, 32, 64])
def test_coverage_in_pruning(m, noise):
    amounts, params, losses, final, end = pruned_own_data(np.random.default_rng(m), 150, m, noise)
    fit = warm(amounts, losses, final, params, 1e9)
    assert 0.78 <= covered(fit, end) <= 0.95
    error, smallest = np.abs(fit.forecast - end), np.abs(losses.min(axis=1) - end)
    assert np.median(error) < 0.5 * np.median(smallest)


def test_forecasts_beat_those_without_a_warm_start_and_the_smallest_loss():
    amounts, losses, final, end = own_data(np.random.default_rng(9), 150, 24, 3e-3, 0.4)
    error = np.abs(warm(amounts, losses, final).forecast - end)
    cold = np.abs(fit_loss_curves(amounts, losses, final).forecast - end)
    assert np.median(error) < 0.4 * np.median(cold)
    assert np.quantile(error, 0.9) < 0.6 * np.quantile(cold, 0.9)
    assert np.median(error) < 0.2 * np.median(np.abs(losses.min(axis=1) - end))


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_a_warm_start_is_no_kink(noise):
    amounts, losses, final, _ = own_data(np.random.default_rng(10), 150, 48, noise, 0.6)
    assert np.mean(warm(amounts, losses, final).first_step > 0) <= 0.02


def test_points_before_a_plateau_are_left_out():
    rng = np.random.default_rng(11)
    x = np.linspace(0, 100, 64)
    kink = rng.uniform(20, 70, (30, 1))
    end = law(kink, **LAW | {"A": 2.0})[:, 0]
    losses = law(np.minimum(x, kink), **LAW | {"A": 2.0}) + 2e-3 * rng.normal(size=(30, 64))
    fit = warm(x, losses, 120)
    assert np.mean(fit.first_step > 0) > 0.9
    assert np.median(np.abs(fit.forecast - end)) < 3e-3


def test_a_rise_is_seen_and_not_trusted():
    x = np.linspace(0, 100, 32)
    losses = 2 + 0.1 * np.log(x + 3) + 1e-2 * np.random.default_rng(12).normal(size=(20, 32))
    fit = warm(x, losses, 200)
    assert fit.rising.all()
    assert (fit.quality == 0).all()


def test_impossible_final_amounts_are_refused():
    x, y = np.arange(5.0), np.ones((2, 5))
    with pytest.raises(ValueError, match="final_amount must be not negative"):
        warm(x, y, [3.0, -1.0])
    with pytest.raises(ValueError, match="final_amount must be positive"):
        fit_loss_curves(x, y, [3.0, 0.0])
    with pytest.raises(ValueError, match=r"final_amount of shape \(3,\)"):
        warm(x, y, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="final_amount must be not negative"):
        warm(x, y, np.nan)
