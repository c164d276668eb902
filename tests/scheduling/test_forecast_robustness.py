"""Forecasts and DRPruning on hostile curves: what is promised holds whatever comes in."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from drpruning.common.unknown import Unknown, record_fields
from drpruning.scheduling import DRPruning, change_domains, fit_loss_curves

FIELDS = (
    *("forecast", "low", "high", "quality", "rising", "first_step"),
    *("objective", "A", "alpha", "beta", "E", "offset"),
)
FINAL_PARAMS = 1e9
SHAPES = (
    *("falling", "constant", "zero", "rising", "exploding", "oscillating", "spike at the end"),
    *("spike at the start", "step", "plateau", "rounded", "only noise", "up and down"),
)
SIZES = ("none", "falling", "rising", "jittering", "constant", "partly missing", "one change")
STEPS = ("even", "repeated", "newest repeated", "all the same", "from 0", "past the end")


def examples(count):
    """Always the same ones; not shrunk, which would take minutes."""
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=count, derandomize=True, phases=phases)


def course(shape, t, rng):
    """Losses without noise at shares t of training."""
    m = len(t)
    falling = 2 + 0.3 * t ** -rng.uniform(0.05, 1.2)
    spike = rng.choice([0.5, 100.0, 1e8])
    return {
        "falling": falling,
        "constant": np.full(m, 2.1),
        "zero": np.zeros(m),
        "rising": 2 + 0.3 * t**0.4,
        "exploding": np.exp(np.minimum(20 * t, 300)),
        "oscillating": 2 + 0.5 * (-1.0) ** np.arange(m),
        "spike at the end": falling + spike * (np.arange(m) == m - 1),
        "spike at the start": falling + spike * (np.arange(m) == 0),
        "step": falling - 0.5 * (np.arange(m) > m / 2),
        "plateau": np.maximum(falling, np.median(falling) if m else 0),
        "rounded": np.round(falling, 2),
        "only noise": rng.uniform(1, 3, m),
        "up and down": 2 + np.minimum(np.arange(m), m // 2) / 10 - np.arange(m) / 50,
    }[shape]


def sizes(kind, m, rng):
    done = np.arange(m) / max(m - 1, 1)
    return {
        "none": None,
        "falling": FINAL_PARAMS * (5 - 4 * np.minimum(done / 0.3, 1)),
        "rising": FINAL_PARAMS * (1 + done),
        "jittering": FINAL_PARAMS * (1 + 1e-3 * rng.normal(size=m)),
        "constant": np.full(m, FINAL_PARAMS),
        "partly missing": np.where(rng.random(m) < 0.4, np.nan, FINAL_PARAMS * (2 - done)),
        "one change": FINAL_PARAMS * np.where(done < 0.2, 5.0, 1.0),
    }[kind]


@dataclass(frozen=True)
class Problem:
    """A seed and words, so that a failure can be read."""

    seed: int
    m: int
    seen: float
    steps: str
    curves: list[tuple[str, float, float]]  # shape, unit, share of missing points
    sizes: str
    warm: bool

    def build(self):
        """Steps [m], losses [n, m], final step and params [m] or None."""
        m, rng = self.m, np.random.default_rng(self.seed)
        even = np.arange(1, m + 1) * 50.0
        steps = {
            "even": even,
            "repeated": np.repeat(even, 2)[:m],
            "newest repeated": np.minimum(even, 50.0 * (m // 2 + 1)),
            "all the same": np.full(m, 100.0),
            "from 0": even - 50,
            "past the end": even,
        }[self.steps]
        final = 50.0 * (m // 2 + 1 if self.steps == "past the end" else max(m, 1) / self.seen)
        losses = np.empty((len(self.curves), m))
        for row, (shape, unit, missing) in zip(losses, self.curves, strict=True):
            noise = rng.choice([0, 1e-9, 3e-3, 1e-2, 0.3]) * rng.normal(size=m)
            row[:] = np.maximum(course(shape, np.maximum(steps, 1) / final, rng) + noise, 0) * unit
            row[rng.random(m) < missing] = rng.choice([np.nan, np.inf])
        return steps, losses, final, sizes(self.sizes, m, rng)


def problems(units=(1e-6, 1.0, 1e6)):
    curve = st.tuples(
        st.sampled_from(SHAPES), st.sampled_from(units), st.sampled_from([0, 0, 0.1, 0.6])
    )
    return st.builds(
        Problem,
        seed=st.integers(0, 2**32 - 1),
        m=st.sampled_from([0, 1, 3, 4, 5, 6, 8, 13, 33, 64, 200]),
        seen=st.sampled_from([0.1, 0.5, 1.0]),
        steps=st.sampled_from(STEPS),
        curves=st.lists(curve, min_size=1, max_size=4),
        sizes=st.sampled_from(SIZES),
        warm=st.booleans(),
    )


def fit(steps, losses, final, params, *, warm=False):
    final_params = None if params is None else FINAL_PARAMS
    return fit_loss_curves(steps, losses, final, params, final_params, warm_start=warm)


def usable(steps, losses, params, *, warm):
    used = np.isfinite(losses) & ((steps >= 0) if warm else (steps > 0))
    return used if params is None else used & np.isfinite(params)


@pytest.mark.filterwarnings("error")
@examples(120)
@given(problems())
def test_what_is_promised_holds_for_any_curve(problem):
    steps, losses, final, params = problem.build()
    found = fit(steps, losses, final, params, warm=problem.warm)
    known = np.isfinite(found.forecast)
    told = np.isfinite(found.low)
    np.testing.assert_array_equal(told, np.isfinite(found.high))
    assert not np.isinf(np.concatenate([found.forecast, found.low, found.high])).any()
    assert (found.low[told] <= found.high[told]).all()
    assert ((found.quality >= 0) & (found.quality <= 1)).all()
    assert (found.forecast[known] >= 0).all()
    assert (found.objective[known] >= 0).all()
    assert not (told & ~known).any()
    assert (found.quality[~told] == 0).all()
    for name in ("objective", "A", "alpha", "beta", "E", "offset", "first_step"):
        np.testing.assert_array_equal(np.isnan(getattr(found, name)), ~known, err_msg=name)
    used = usable(steps, losses, params, warm=problem.warm)
    assert not known[used.sum(axis=1) < 4].any()
    if problem.warm:
        assert not known[[len(np.unique(steps[row])) < 2 for row in used]].any()


@examples(120)
@given(problems())
def test_a_trusted_forecast_is_near_the_losses(problem):
    """Whoever forecasts ten times the largest loss seen must not be sure of it."""
    steps, losses, final, params = problem.build()
    found = fit(steps, losses, final, params, warm=problem.warm)
    largest = np.where(usable(steps, losses, params, warm=problem.warm), losses, 0).max(
        axis=1, initial=0
    )
    sure = found.quality >= 0.5
    assert (found.forecast[sure] <= 10 * largest[sure]).all()
    assert (found.low[sure] >= 0).all()


@examples(30)
@given(problems(units=(1.0,)))
def test_a_domain_has_the_same_result_alone_and_again(problem):
    steps, losses, final, params = problem.build()
    together, again = (fit(steps, losses, final, params, warm=problem.warm) for _ in range(2))
    for i in range(len(losses)):
        alone = fit(steps, losses[i : i + 1], final, params, warm=problem.warm)
        for name in FIELDS:
            value = getattr(together, name)[i]
            np.testing.assert_array_equal(getattr(again, name)[i], value)
            np.testing.assert_allclose(getattr(alone, name)[0], value, rtol=1e-12)


def noisy(rng, m=32, final=3200.0, noise=3e-3):
    steps = np.arange(1, m + 1) * 50.0
    return steps, (2 + 0.3 * (steps / final) ** -0.4 + noise * rng.normal(size=m))[None], final


@pytest.mark.parametrize("pruning", [False, True])
def test_the_order_of_the_points_is_irrelevant(pruning):
    rng = np.random.default_rng(0)
    steps, losses, final = noisy(rng)
    losses[0, :12] += 0.2  # a change of course
    params = FINAL_PARAMS * (5 - 4 * np.minimum(steps / 640, 1)) if pruning else None
    sorted_fit = fit(steps, losses, final, params)
    mixed = rng.permutation(len(steps))
    mixed_fit = fit(
        steps[mixed], losses[:, mixed], final, None if params is None else params[mixed]
    )
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(mixed_fit, name), getattr(sorted_fit, name), rtol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("m", [4, 8, 32])
@pytest.mark.parametrize("level", [2.1, 0.001, 37.0])
def test_constant_losses_are_forecast_as_they_are_and_do_not_rise(m, level):
    found = fit_loss_curves(np.arange(1, m + 1) * 50.0, np.full((1, m), level), 100.0 * m)
    assert not found.rising[0]
    assert found.forecast[0] == pytest.approx(level, rel=1e-3)
    assert found.quality[0] > 0.9


def test_equal_losses_in_a_row_are_no_rise():
    """Losses that were rounded for a log, on a plateau."""
    rng = np.random.default_rng(1)
    steps = np.arange(1, 33) * 50.0
    losses = np.round(2 + 2e-4 * rng.normal(size=(20, 32)), 3)
    assert not fit_loss_curves(steps, losses, 3200).rising.any()


def test_a_rise_is_seen_and_not_trusted():
    rng = np.random.default_rng(2)
    steps = np.arange(1, 33) * 50.0
    losses = 2 + 0.1 * np.log(steps) + 1e-2 * rng.normal(size=(20, 32))
    found = fit_loss_curves(steps, losses, 3200)
    assert found.rising.all()
    assert (found.quality == 0).all()


def test_no_progress_in_steps_tells_nothing_of_the_end():
    rng = np.random.default_rng(3)
    losses = 2 + 1e-2 * rng.normal(size=(10, 16))
    assert (fit_loss_curves(np.full(16, 50.0), losses, 3200).quality < 0.5).all()


def test_two_levels_in_turn_are_not_certain():
    steps = np.arange(1, 33) * 50.0
    losses = 2 + 0.5 * (-1.0) ** np.arange(32)[None]
    found = fit_loss_curves(steps, losses, 3200)
    assert found.quality[0] < 0.9 or found.low[0] <= 2 <= found.high[0]


def test_a_size_that_was_never_left_tells_nothing_of_the_final_one():
    """All evaluations at five times the final size: the effect of the size is unknown."""
    steps, losses, final = noisy(np.random.default_rng(4))
    found = fit_loss_curves(steps, losses, final, np.full(32, 5 * FINAL_PARAMS), FINAL_PARAMS)
    assert found.quality[0] < 0.5


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_the_unit_of_the_losses_hardly_matters(scale):
    steps, losses, final = noisy(np.random.default_rng(5))
    found = fit_loss_curves(steps, losses, final)
    scaled = fit_loss_curves(steps, losses * scale, final)
    half = (found.high - found.low)[0] / 2
    assert abs(scaled.forecast[0] / scale - found.forecast[0]) < half
    assert scaled.quality[0] == pytest.approx(found.quality[0], abs=0.05)


@pytest.mark.parametrize("spike", [0.3, 5.0, 100.0])
@pytest.mark.parametrize("where", [0, 5, 20])
def test_one_spike_hardly_moves_the_forecast(where, spike):
    steps, losses, final = noisy(np.random.default_rng(6))
    clean = fit_loss_curves(steps, losses, final)
    losses[0, where] += spike
    found = fit_loss_curves(steps, losses, final)
    assert abs(found.forecast[0] - clean.forecast[0]) < 0.02


def test_many_domains_at_once():
    rng = np.random.default_rng(7)
    steps, _, final = noisy(rng)
    losses = 2 + 0.3 * (steps / final) ** -rng.uniform(0.1, 1, (50, 1))
    losses += 3e-3 * rng.normal(size=losses.shape)
    found = fit_loss_curves(steps, losses, final)
    assert np.isfinite(found.forecast).all()
    assert np.quantile(np.abs(found.forecast - 2.3), 0.9) < 0.02


# --- DRPruning -----------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
RATIO = {"a": 0.6, "b": 0.3, "c": 0.1}
TOTAL = 100


def everything(decision):
    """A decision as strict JSON: no NaN, no infinity."""
    return json.dumps(record_fields(decision), allow_nan=False, sort_keys=True)


def strict(state):
    return json.loads(json.dumps(state, allow_nan=False))


loss = st.one_of(
    st.floats(0, 10),
    st.sampled_from([2.0, 2.5, None, math.nan, math.inf, -math.inf, 1e-9, 1e12, 1e300]),
)
evaluations = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.dictionaries(st.sampled_from(NAMES), loss, min_size=2),
        st.one_of(st.none(), st.floats(9e8, 5e9)),
    ),
    min_size=5,
    max_size=18,
)
options = st.fixed_dictionaries(
    {
        "final_params": st.sampled_from([None, FINAL_PARAMS]),
        "reference_rule": st.sampled_from(["minimum", "credible", "latest"]),
        "min_quality": st.sampled_from([0.0, 0.5]),
        "loss_weight": st.sampled_from([0.1, 1.0]),
        "forecast_start": st.sampled_from([0.0, 0.2]),
        "reference_loss": st.sampled_from([None, dict.fromkeys(NAMES, 2.0)]),
    }
)


@pytest.mark.filterwarnings("error")
@examples(20)
@given(evaluations, options)
def test_any_sequence_of_updates_is_decided_and_resumes_bit_for_bit(sequence, chosen):
    policy = DRPruning(RATIO, TOTAL, **chosen)
    state, step = strict(policy.state_dict()), 0
    for more, losses, params in sequence:
        step += more
        resumed = DRPruning(RATIO, TOTAL, **chosen)
        resumed.load_state_dict(state)
        decision = policy.update(step, losses, params)
        assert everything(resumed.update(step, losses, params)) == everything(decision)
        state = strict(policy.state_dict())
        assert strict(resumed.state_dict()) == state
        check(decision)


def check(decision):
    assert sum(decision.ratio.values()) == pytest.approx(1, abs=1e-12)
    why = decision.explanation
    if why.ratio_updated:
        assert all(decision.ratio[d] >= why.floor[d] * (1 - 1e-9) for d in NAMES)
        assert why.divergence <= why.rho * (1 + 1e-9)
    for d in NAMES:
        assert RATIO[d] / 2 * (1 - 1e-9) <= decision.reference_ratio[d] <= RATIO[d] * 2 * (1 + 1e-9)
    for value in (decision.forecast or {}).values():
        assert 0 <= value < math.inf
    if not isinstance(why.no_forecast, Unknown):
        assert set(why.no_forecast) == set(NAMES) - set(decision.forecast or {})
        assert not set(why.refused) & set(why.no_forecast)


@examples(30)
@given(evaluations, st.integers(1, 17), st.sampled_from([None, {"new": 2.0}]))
def test_domains_can_change_at_any_time(sequence, when, known):
    ratio = {"b": 0.5, "c": 0.3, "new": 0.2}
    policy, step = DRPruning(RATIO, TOTAL), 0
    for more, losses, _ in sequence[:when]:
        step += more
        policy.update(step, losses)
    state = strict(change_domains(strict(policy.state_dict()), ratio, known))
    policy = DRPruning(ratio, TOTAL)
    policy.load_state_dict(state)
    for more, losses, _ in sequence[when:]:
        step += more
        own = {d: value for d, value in losses.items() if d in ratio} | {"new": 2.2}
        decision = policy.update(step, own)
        assert sum(decision.ratio.values()) == pytest.approx(1, abs=1e-12)
        everything(decision)


@pytest.mark.parametrize("params", [math.nan, math.inf, 0.0, -1.0])
def test_an_impossible_number_of_parameters_is_one_that_is_not_known(params):
    policies = [DRPruning(RATIO, TOTAL, FINAL_PARAMS) for _ in range(2)]
    for step in range(0, 60, 5):
        losses = dict.fromkeys(NAMES, 2 + 0.3 * ((step + 5) / TOTAL) ** -0.4)
        size = FINAL_PARAMS * (5 - 4 * min(step / 20, 1))
        decisions = [
            policy.update(step, losses, size if step != 30 else odd)
            for policy, odd in zip(policies, (params, None), strict=True)
        ]
        assert everything(decisions[0]) == everything(decisions[1])
    strict(policies[0].state_dict())


def test_why_there_is_no_forecast_where_the_size_is_mostly_unknown():
    policy = DRPruning(RATIO, TOTAL, FINAL_PARAMS)
    for step in range(0, 60, 5):
        losses = dict.fromkeys(NAMES, 2 + 0.3 * ((step + 5) / TOTAL) ** -0.4)
        decision = policy.update(step, losses, FINAL_PARAMS if step == 20 else None)
    assert "points" in decision.explanation.no_forecast["a"]
