"""Intervals, quality and change points of forecasts, on curves whose end is known."""

import numpy as np
import pytest
from curves import damaged, misspecified, power_law, pruning

from drpruning.scheduling import fit_loss_curves


def covered(fit, truth):
    return np.mean((fit.low <= truth) & (truth <= fit.high))


def test_nine_in_ten_intervals_hold_the_end():
    inside = [
        covered(fit_loss_curves(steps, losses, final), truth)
        for m, noise, seen in [(8, 1e-2, 0.2), (20, 3e-3, 0.4), (64, 1e-2, 1.0)]
        for steps, losses, final, truth in [
            power_law(np.random.default_rng(m), 200, m, noise, seen)
        ]
    ]
    assert 0.86 < np.mean(inside) < 0.94  # 600 curves: a standard error of 1.2 points


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize(
    ("m", "seen"), [(4, 0.2), (5, 0.1), (8, 0.15), (12, 0.2), (20, 0.4), (32, 0.5), (64, 1.0)]
)
def test_coverage_lies_between_85_and_95_percent(m, seen, noise):
    steps, losses, final, truth = power_law(np.random.default_rng(m), 800, m, noise, seen)
    assert 0.85 <= covered(fit_loss_curves(steps, losses, final), truth) <= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize("m", [14, 20, 32, 48, 64])
def test_coverage_lies_between_85_and_95_percent_in_pruning(m, noise):
    steps, params, losses, truth = pruning(np.random.default_rng(m), 800, m, noise)
    fit = fit_loss_curves(steps, losses, 3200, params, 1e9)
    assert 0.85 <= covered(fit, truth) <= 0.95


def test_intervals_narrow_with_more_points_and_widen_with_noise():
    def half_width(m, noise):
        steps, losses, final, _ = power_law(np.random.default_rng(1), 60, m, noise, m / 64)
        fit = fit_loss_curves(steps, losses, final)
        return np.median(fit.high - fit.low)

    assert half_width(64, 3e-3) < half_width(24, 3e-3) < half_width(12, 3e-3)
    assert half_width(24, 1e-3) < half_width(24, 3e-3) < half_width(24, 1e-2)


def test_exact_curves_have_tight_intervals_of_full_quality():
    steps, losses, final, truth = power_law(np.random.default_rng(2), 20, 30, 0.0, 0.5)
    fit = fit_loss_curves(steps, losses, final)
    assert np.all(fit.high - fit.low < 1e-3)
    assert np.all((fit.low - 1e-4 < truth) & (truth < fit.high + 1e-4))
    assert np.all(fit.quality > 0.99)


def test_a_rising_or_exploding_curve_has_quality_0():
    x = np.arange(1, 21) / 40
    noise = 5e-3 * np.random.default_rng(3).normal(size=20)
    losses = np.stack([2 + x, 2 + 0.1 * np.exp(8 * x), 2 + 0.2 * np.log(x)]) + noise
    fit = fit_loss_curves(x * 1000, losses, 1000)
    assert fit.rising.all()
    assert fit.quality.tolist() == [0, 0, 0]


def test_noise_as_large_as_the_loss_has_low_quality_and_a_plateau_with_little_high_quality():
    rng = np.random.default_rng(4)
    losses = np.stack([np.full(20, 2.0)] * 40)
    losses[:20] += 1.2 * rng.normal(size=(20, 20))
    losses[20:] += 0.01 * rng.normal(size=(20, 20))
    fit = fit_loss_curves(np.arange(1, 21) * 50.0, losses, 2000)
    assert fit.quality[:20].max() < 0.5
    assert fit.quality[20:][~fit.rising[20:]].min() > 0.9
    assert fit.rising.sum() <= 3


def test_five_points_with_changing_size_have_a_forecast_but_no_interval():
    steps, params, losses, _ = pruning(np.random.default_rng(5), 3, 5, 1e-3)
    fit = fit_loss_curves(steps, losses, 3200, params, 1e9)
    assert np.isfinite(fit.forecast).all()
    assert np.isnan(fit.low).all()
    assert fit.quality.tolist() == [0, 0, 0]


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_one_law_is_one_curve(noise):
    for seen in (0.3, 1.0):
        steps, losses, final, _ = power_law(np.random.default_rng(6), 100, 40, noise, seen)
        first = fit_loss_curves(steps, losses, final).first_step
        assert np.mean(first > 50) <= 0.02


def test_points_before_a_plateau_are_left_out():
    x = np.arange(1, 65) / 64
    kink = np.random.default_rng(7).uniform(0.2, 0.7, (30, 1))
    truth = 2 + 0.3 * kink[:, 0] ** -0.6
    losses = (
        2
        + 0.3 * np.minimum(x, kink) ** -0.6
        + 2e-3 * np.random.default_rng(8).normal(size=(30, 64))
    )
    fit = fit_loss_curves(x * 3200, losses, 3200)
    assert np.mean(fit.first_step > 50) > 0.9
    assert np.median(np.abs(fit.forecast - truth)) < 2e-3


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
@pytest.mark.parametrize(("m", "seen"), [(20, 0.4), (39, 0.6), (64, 1.0)])
def test_misspecified_curves_are_forecast_better_than_by_the_smallest_loss(m, seen, noise):
    steps, losses, final, truth = misspecified(np.random.default_rng(m), 150, m, noise, seen)
    error = np.abs(fit_loss_curves(steps, losses, final).forecast - truth)
    naive = np.abs(losses.min(axis=1) - truth)
    assert np.median(error) < 0.7 * np.median(naive)
    assert np.quantile(error, 0.95) < 1.3 * np.quantile(naive, 0.95)


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
@pytest.mark.parametrize("m", [24, 40, 64])
def test_damage_by_pruning_is_forecast_better_than_by_the_smallest_loss(m, noise):
    steps, params, losses, truth = damaged(np.random.default_rng(m), 100, m, noise)
    fit = fit_loss_curves(steps, losses, 3200, params, 1e9)
    error = np.abs(fit.forecast - truth)
    naive = np.abs(losses.min(axis=1) - truth)
    assert np.median(error) < 0.3 * np.median(naive)
    assert np.quantile(error, 0.95) < np.quantile(naive, 0.95)
