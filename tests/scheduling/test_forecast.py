"""fit_loss_curves: as good as a converged reference, and right about known ends."""

import numpy as np
import pytest
from curves import power_law, pruning
from scipy.optimize import minimize

from drpruning.scheduling import fit_loss_curves

DELTA = 1e-3


def mean_huber(residual):
    size = np.abs(residual)
    return np.mean(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)))


def reference_objective(log_t, log_p, y):
    """The smallest mean Huber loss that L-BFGS reaches, one start at a time."""

    def scaled(theta):
        a, e, alpha, beta = theta
        falling = np.exp(np.clip(a - alpha * log_p - beta * log_t, -300, 100))
        residual = falling + np.exp(e) - y
        slope = np.clip(residual, -DELTA, DELTA)
        parts = [falling, np.full_like(y, np.exp(e)), -falling * log_p, -falling * log_t]
        return mean_huber(residual) * 1e3, np.array([np.mean(slope * d) * 1e3 for d in parts])

    best = np.inf
    alphas = (0.0,) if not log_p.any() else (0.0, 0.5, 1.5)
    betas = (-1, 0.05, 0.3, 0.6, 1, 2, 5)
    for a in (0.1, 0.5):
        for e in (0.3, 0.95):
            for alpha in alphas:
                for beta in betas:
                    theta = np.array([np.log(a), np.log(e * y.min()), alpha, beta])
                    for _ in range(2):
                        options = {"maxiter": 1500, "ftol": 1e-15, "gtol": 1e-12}
                        found = minimize(
                            scaled, theta, jac=True, method="L-BFGS-B", options=options
                        )
                        theta = found.x
                    best = min(best, found.fun / 1e3)
    return best


def assert_as_good_as_reference(fit, log_t, log_p, losses):
    for i, y in enumerate(losses):
        best = reference_objective(log_t, log_p, y)
        assert fit.objective[i] <= max(best * 1.001, best + 1e-10)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("m", "noise", "seen"), [(4, 1e-3, 0.5), (13, 3e-3, 0.2), (64, 1e-2, 1.0)])
def test_objective_matches_a_converged_reference(m, noise, seen):
    steps, losses, final, _ = power_law(np.random.default_rng(m), 3, m, noise, seen)
    fit = fit_loss_curves(steps, losses, final)
    assert_as_good_as_reference(fit, np.log(steps / final), np.zeros(m), losses)


@pytest.mark.filterwarnings("ignore:overflow")
def test_objective_matches_a_converged_reference_off_the_model():
    rng = np.random.default_rng(7)
    x = np.arange(1, 31) / 60
    losses = np.stack(
        [
            np.full(30, 2.0),
            3 - 0.3 * np.log(x),
            1.5 + 0.3 * x**-0.2 + 0.05 * x**-1.2,
            2 + 0.3 * x**-0.5 + 0.2 * (x > 0.2),
        ]
    ) + 2e-3 * rng.normal(size=(4, 30))
    fit = fit_loss_curves(x * 600, losses, 600)
    assert_as_good_as_reference(fit, np.log(x), np.zeros(30), losses)


@pytest.mark.filterwarnings("ignore:overflow")
def test_objective_matches_a_converged_reference_in_pruning():
    steps, params, losses, _ = pruning(np.random.default_rng(3), 2, 30, noise=3e-3)
    fit = fit_loss_curves(steps, losses, 3200, params, 1e9)
    assert_as_good_as_reference(fit, np.log(steps / 3200), np.log(params / 1e9), losses)


def test_forecast_of_noisy_curves_is_close():
    steps, losses, final, truth = power_law(np.random.default_rng(0), 100, 64, noise=3e-3)
    error = np.abs(fit_loss_curves(steps, losses, final).forecast - truth)
    assert error.mean() < 1.5e-3


def test_forecast_from_half_of_training_beats_the_smallest_loss_seen():
    steps, losses, final, truth = power_law(np.random.default_rng(1), 100, 32, 3e-3, seen=0.5)
    error = np.abs(fit_loss_curves(steps, losses, final).forecast - truth)
    naive = np.abs(losses.min(axis=1) - truth)
    assert np.median(error) < 0.3 * np.median(naive)


def test_exact_curves_are_recovered():
    steps = np.arange(1, 41) * 100.0
    params = np.linspace(3e8, 1e8, 40)
    A, alpha, beta, E = 40.0, 0.15, 0.3, 1.7
    losses = (A * params**-alpha * steps**-beta + E)[None]
    fit = fit_loss_curves(steps[None], losses, 8000, params[None], 1e8)
    np.testing.assert_allclose(
        [fit.A[0], fit.alpha[0], fit.beta[0], fit.E[0]], [A, alpha, beta, E], rtol=1e-4
    )
    np.testing.assert_allclose(fit.forecast, A * 1e8**-alpha * 8000**-beta + E, atol=1e-6)


def test_constant_params_merge_with_the_factor():
    steps, losses, final, _ = power_law(np.random.default_rng(2), 3, 20, 1e-3, 0.5)
    without = fit_loss_curves(steps, losses, final)
    constant = fit_loss_curves(steps, losses, final, np.full(20, 1e9), 1e9)
    np.testing.assert_array_equal(constant.forecast, without.forecast)
    np.testing.assert_array_equal(constant.A, without.A)
    assert constant.alpha.tolist() == [0, 0, 0]


def test_missing_points_and_step_0_are_left_out():
    steps, losses, final, _ = power_law(np.random.default_rng(4), 2, 20, 1e-3, 0.5)
    padded_steps = np.concatenate([[0.0], steps, [1050.0]])
    padded = np.column_stack([[9.0, 9.0], losses, [np.nan, np.inf]])
    fit = fit_loss_curves(padded_steps, padded, final)
    np.testing.assert_allclose(
        fit.forecast, fit_loss_curves(steps, losses, final).forecast, atol=1e-6
    )


def test_domains_do_not_disturb_each_other():
    steps, losses, final, _ = power_law(np.random.default_rng(5), 3, 12, 3e-3, 0.3)
    losses[1, 3:] = np.nan
    together = fit_loss_curves(steps, losses, final)
    alone = fit_loss_curves(steps, losses[2:], final)
    np.testing.assert_allclose(together.forecast[2], alone.forecast[0], rtol=1e-9)
    assert np.isnan([together.forecast[1], together.objective[1], together.E[1]]).all()


@pytest.mark.parametrize("m", [4, 5, 8])
def test_few_noisy_points_give_finite_forecasts(m):
    steps, losses, final, _ = power_law(np.random.default_rng(6), 50, m, 1e-2, seen=0.1)
    fit = fit_loss_curves(steps, losses, final)
    assert np.isfinite(fit.forecast).all()
    assert (fit.forecast >= 0).all()


def test_impossible_input_is_refused():
    y = np.ones((2, 5))
    with pytest.raises(ValueError, match=r"losses must be \[domains, evaluations\]"):
        fit_loss_curves(np.arange(5), y[0], 10)
    with pytest.raises(ValueError, match="does not fit"):
        fit_loss_curves(np.arange(4), y, 10)
    with pytest.raises(ValueError, match="final_amount"):
        fit_loss_curves(np.arange(5), y, 0)
    with pytest.raises(ValueError, match="final_params must be given"):
        fit_loss_curves(np.arange(5), y, 10, np.arange(1, 6))
