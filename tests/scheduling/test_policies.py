"""Policies: worked examples, the order of an update, state and hand-over."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drpruning.common.unknown import record_fields
from drpruning.scheduling import (
    PAPER_SETTINGS,
    POLICY_NAMES,
    CVaR,
    DRPruning,
    GroupDRO,
    NaiveDRO,
    Sheared,
    divergence,
    make_policy,
)

RATIO = {
    "cc": 0.67,
    "c4": 0.15,
    "github": 0.045,
    "book": 0.045,
    "wiki": 0.045,
    "arxiv": 0.025,
    "stack": 0.02,
}
REFERENCE = dict(zip(RATIO, (1.96, 2.13, 0.75, 2.14, 1.76, 1.44, 1.61), strict=True))
STEPS = 1000


def losses_at(step, rng=None):
    """Loss curves of the seven domains; noisy if a generator is given."""
    x = max(step, 1) / STEPS
    exact = {d: REFERENCE[d] + 0.05 * (i + 1) * x**-0.4 for i, d in enumerate(RATIO)}
    if rng is None:
        return exact
    return {d: v + 3e-3 * rng.normal() for d, v in exact.items()}


def steered(*args, **options):
    """DRPruning as the paper has it, but with forecasts that must be good."""
    return DRPruning(*args, **(PAPER_SETTINGS | {"min_quality": 0.5} | options))


def built(name, ratio=RATIO, **options):
    if name == "sheared":
        options = {"reference_loss": REFERENCE} | options
    return make_policy(name, ratio, STEPS, **options)


def run(policy, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [policy.update(step=s, losses=losses_at(s, rng)) for s in steps]


def array(mapping):
    return np.array([mapping[d] for d in RATIO])


# --- worked examples


def test_naive_dro_by_hand():
    policy = NaiveDRO({"a": 0.5, "b": 0.5}, rho=0.02, floor=0.1, reference_loss={"a": 1, "b": 3})
    decision = policy.update(step=0, losses={"a": 2.0, "b": 3.5})
    assert decision.ratio == pytest.approx({"a": 0.6, "b": 0.4})
    assert decision.excess == pytest.approx({"a": 1.0, "b": 0.5})
    assert decision.explanation.divergence == pytest.approx(0.02)
    assert decision.explanation.at_floor == {"a": False, "b": False}
    json.dumps(record_fields(decision.explanation), allow_nan=False)


def test_naive_dro_without_reference_goes_by_the_losses():
    policy = NaiveDRO({"a": 0.5, "b": 0.5}, rho=0.02, floor=0.1)
    assert policy.update(step=0, losses={"a": 2.0, "b": 3.5}).ratio == pytest.approx(
        {"a": 0.4, "b": 0.6}
    )


def test_sheared_by_hand():
    policy = Sheared({"a": 0.5, "b": 0.5}, reference_loss={"a": 1.0, "b": 1.0})
    decision = policy.update(step=50, losses={"a": 1.0 + math.log(3), "b": 1.0})
    assert decision.ratio["a"] == pytest.approx((1 - 1e-4) * 0.75 + 0.5e-4, abs=1e-15)


def test_group_dro_by_hand():
    policy = GroupDRO({"a": 0.5, "b": 0.5}, eta=0.5)
    assert policy.update(0, {"a": 2 * math.log(3), "b": 0}).ratio["a"] == pytest.approx(0.75)


def test_cvar_by_hand():
    policy = CVaR({"a": 0.5, "b": 0.2, "c": 0.3}, alpha=0.4)
    assert policy.update(0, {"a": 1, "b": 3, "c": 2}).ratio == {"a": 0, "b": 0.5, "c": 0.5}
    tied = policy.update(1, {"a": 2, "b": 1, "c": 2}).ratio
    assert tied == pytest.approx({"a": 5 / 8, "b": 0, "c": 3 / 8})
    whole = CVaR({"a": 0.5, "b": 0.5}, alpha=1.0).update(0, {"a": 9, "b": 1})
    assert whole.ratio == {"a": 0.5, "b": 0.5}


def test_constant_stays():
    policy = built("constant")
    run(policy, range(0, 500, 100))
    assert array(policy.ratio) == pytest.approx(array(RATIO))


# --- DRPruning, part by part


def test_ratio_stays_until_there_is_a_reference():
    decisions = run(steered(RATIO, STEPS), range(0, STEPS, 50))
    for step, decision in zip(range(0, 200, 50), decisions, strict=False):
        assert step < 200
        assert decision.ratio == decisions[0].ratio
        assert not decision.explanation.ratio_updated
        assert decision.reference_loss is None
        assert decision.forecast is None
    assert decisions[4].explanation.ratio_updated
    assert decisions[4].ratio != decisions[0].ratio


def test_initial_reference_moves_the_ratio_at_step_0_and_is_replaced_by_the_first_forecast():
    low = dict.fromkeys(RATIO, 0.5)
    decisions = run(steered(RATIO, STEPS, reference_loss=low), range(0, 300, 50))
    assert decisions[0].explanation.ratio_updated
    assert decisions[3].reference_loss == low
    assert decisions[4].reference_loss == decisions[4].forecast
    assert min(decisions[4].reference_loss.values()) > 0.5


def test_reference_is_the_running_minimum_of_bounded_forecasts():
    seen, lowest = np.full(7, np.inf), np.full(7, np.inf)
    rng = np.random.default_rng(0)
    policy = steered(RATIO, STEPS)
    for step in range(0, STEPS + 1, 50):
        losses = losses_at(step, rng)
        decision = policy.update(step, losses)
        seen = np.minimum(seen, array(losses))
        if decision.forecast is None:
            continue
        forecast = array(decision.forecast)
        assert np.all((forecast >= 0) & (forecast <= seen))
        lowest = np.minimum(lowest, forecast)
        np.testing.assert_array_equal(array(decision.reference_loss), lowest)


def test_rising_losses_forecast_at_most_the_smallest_seen():
    policy = steered({"a": 0.5, "b": 0.5}, STEPS)
    for step in range(50, 400, 50):
        decision = policy.update(step, {"a": 1 + step / STEPS, "b": 2 + step / STEPS})
    assert decision.forecast["a"] <= 1.05
    assert decision.forecast["b"] <= 2.05


def test_reference_ratio_waits_then_moves_after_the_decision_and_keeps_its_bounds():
    policy = steered(RATIO, STEPS, rho=0.5, delta=0.5, bound=1.3)
    before = array(RATIO)
    for step, decision in zip(range(0, 1001, 50), run(policy, range(0, 1001, 50)), strict=True):
        after, ratio = array(decision.reference_ratio), array(decision.ratio)
        assert decision.explanation.reference_ratio_updated == (step >= 400)
        assert divergence(ratio, before) <= 0.5 + 1e-12
        assert decision.explanation.divergence == pytest.approx(divergence(ratio, before))
        assert np.all(ratio >= before.min() - 1e-12)
        if step < 400:
            np.testing.assert_allclose(after, array(RATIO), atol=1e-15)
        assert after.sum() == pytest.approx(1, abs=1e-12)
        assert np.all(after >= array(RATIO) / 1.3 - 1e-12)
        assert np.all(after <= array(RATIO) * 1.3 + 1e-12)
        before = after
    assert np.abs(before - array(RATIO)).max() > 1e-3


def test_reference_ratio_moves_by_delta_within_the_bounds():
    policy = steered(
        {"a": 0.5, "b": 0.5},
        STEPS,
        rho=0.02,
        floor=0.1,
        reference_loss={"a": 1, "b": 1},
        forecast="never",
    )
    decision = policy.update(400, {"a": 2, "b": 1})
    assert decision.ratio["a"] == pytest.approx(0.6)
    assert decision.reference_ratio["a"] == pytest.approx(0.1 * 0.6 + 0.9 * 0.5)


def test_without_its_parts_it_is_naive_dro():
    settings = {"reference_loss": REFERENCE, "rho": 0.05}
    plain = steered(RATIO, STEPS, forecast="never", moving_reference=False, **settings)
    naive = NaiveDRO(RATIO, STEPS, **settings)
    steps = range(0, 1000, 100)
    for a, b in zip(run(plain, steps), run(naive, steps), strict=True):
        assert a.ratio == b.ratio
        assert a.reference_ratio == b.reference_ratio


def test_average_of_the_losses():
    reference = {"a": 0, "b": 0}
    policy = steered(
        {"a": 0.5, "b": 0.5}, STEPS, loss_weight=0.25, reference_loss=reference, forecast="never"
    )
    assert policy.update(0, {"a": 4, "b": 1}).excess == {"a": 4, "b": 1}
    assert policy.update(50, {"a": 0, "b": 1}).excess == {"a": 3, "b": 1}
    missing = policy.update(100, {"b": 1})
    assert missing.excess == {"b": 1}
    assert policy.update(150, {"a": 3, "b": 1}).excess == {"a": 3, "b": 1}


def test_number_of_parameters_enters_the_forecast():
    def falling(step):
        params = 5e8 - 4e8 * min(step / 200, 1)
        return params, {
            d: 0.3 * (params / 1e8) ** -0.5 * (step / STEPS) ** -0.3 + i + 1
            for i, d in enumerate(RATIO)
        }

    policy = steered(RATIO, STEPS, final_params=1e8)
    for step in range(10, 401, 10):
        params, losses = falling(step)
        decision = policy.update(step, losses, params)
    expected = [i + 1.3 for i in range(7)]
    np.testing.assert_allclose(array(decision.forecast), expected, atol=1e-3)


# --- losses that are not there


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "absent"])
@pytest.mark.parametrize("name", ["drpruning", "naive_dro", "sheared", "group_dro", "cvar"])
def test_an_unusable_loss_keeps_the_ratio_and_says_so(name, bad):
    policy = built(name)
    run(policy, range(0, 500, 50))
    before = policy.ratio
    losses = losses_at(500) | {"wiki": bad}
    if bad == "absent":
        del losses["wiki"]
    decision = policy.update(500, losses)
    assert decision.ratio == policy.ratio == before
    assert list(decision.explanation.unusable) == ["wiki"]
    assert not decision.explanation.ratio_updated
    json.dumps([record_fields(decision), policy.state_dict()], allow_nan=False)
    assert policy.update(550, losses_at(550)).explanation.ratio_updated


def test_a_domain_without_enough_points_has_no_forecast_but_keeps_its_initial_reference():
    policy = steered(RATIO, STEPS, reference_loss=REFERENCE)
    for step in range(0, 401, 50):
        losses = losses_at(step) | ({"book": math.nan} if step < 300 else {})
        decision = policy.update(step, losses)
    assert "book" not in decision.forecast
    assert "3 of the 4" in decision.explanation.no_forecast["book"]
    assert decision.reference_loss["book"] == REFERENCE["book"]
    assert decision.reference_loss["cc"] == pytest.approx(decision.forecast["cc"])
    assert decision.explanation.ratio_updated


# --- state


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("stop", [0, 3, 6, 10])
def test_resumed_equals_uninterrupted(name, stop):
    rng = np.random.default_rng(1)
    evaluations = [(s, losses_at(s, rng)) for s in range(0, 1000, 50)]
    evaluations[5][1]["wiki"] = math.nan
    whole, first = built(name), built(name)
    expected = [whole.update(*e) for e in evaluations]
    for evaluation in evaluations[:stop]:
        first.update(*evaluation)
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    second = built(name)
    second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    assert [second.update(*e) for e in evaluations[stop:]] == expected[stop:]
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_foreign_states_are_refused(name):
    policy = built(name)
    other = "cvar" if name != "cvar" else "constant"
    with pytest.raises(ValueError, match=other):
        policy.load_state_dict(built(other).state_dict())
    with pytest.raises(ValueError, match="version"):
        policy.load_state_dict(policy.state_dict() | {"version": 99})
    two = {"cc": 0.5, "law": 0.5}
    reference = {"reference_loss": dict.fromkeys(two, 1.0)} if name == "sheared" else {}
    elsewhere = make_policy(name, two, STEPS, **reference).state_dict()
    for accept in (policy.load_state_dict, policy.continue_from):
        with pytest.raises(ValueError, match="law"):
            accept(elsewhere)


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("earlier", POLICY_NAMES)
def test_continue_from_takes_the_ratio(name, earlier):
    first = built(earlier)
    run(first, range(0, 1000, 50))
    policy = built(name)
    policy.continue_from(json.loads(json.dumps(first.state_dict())))
    assert policy.ratio == first.ratio
    assert policy.update(0, losses_at(0)).ratio  # its steps start again


def test_continue_from_takes_reference_loss_and_ratio_but_no_history():
    first = steered(RATIO, STEPS)
    last = run(first, range(0, 1001, 50))[-1]
    second = steered(RATIO, STEPS)
    second.continue_from(first.state_dict())
    decision = second.update(0, losses_at(0))
    assert decision.reference_loss == last.reference_loss
    assert decision.reference_ratio == last.reference_ratio
    assert decision.explanation.ratio_updated
    assert decision.forecast is None
    third = steered(RATIO, STEPS)
    third.continue_from(first.state_dict())
    decisions = run(third, range(0, 300, 50))
    assert decisions[4].reference_loss == decisions[4].forecast


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_order_of_the_domains_is_irrelevant(name):
    backwards = dict(reversed(RATIO.items()))
    steps = range(0, 1000, 50)
    for a, b in zip(run(built(name), steps), run(built(name, backwards), steps), strict=True):
        np.testing.assert_allclose(array(a.ratio), array(b.ratio), atol=1e-7)
        np.testing.assert_allclose(array(a.reference_ratio), array(b.reference_ratio), atol=1e-7)


# --- bad input


@pytest.mark.parametrize(
    ("ratio", "options", "message"),
    [
        ({}, {}, "empty"),
        ({"a": 0.5, "b": 0.6}, {}, "sum to 1"),
        ({"a": 1.5, "b": -0.5}, {}, "positive"),
        ({"a": 1.0, "b": 0.0}, {}, "b must be positive; leave out a domain that is only evaluated"),
        ({"a": math.nan, "b": 1.0}, {}, "finite"),
        ({"a": 0.5, "b": 0.5}, {"reference_loss": {"a": 1.0}}, "lacks the domains b"),
        ({"a": 0.5, "b": 0.5}, {"reference_loss": {"a": 1, "b": 1, "c": 1}}, "unknown domains c"),
        ({"a": 0.5, "b": 0.5}, {"floor": 0.6}, "floor"),
        ({"a": 0.9, "b": 0.1}, {"floor": 0.4, "rho": 0.01}, "raise rho"),
        ({"a": 0.5, "b": 0.5}, {"rho": -1}, "rho"),
        ({"a": 0.5, "b": 0.5}, {"bound": 0.5}, "bound"),
        ({"a": 0.5, "b": 0.5}, {"loss_weight": 0}, "loss_weight"),
        ({"a": 0.5, "b": 0.5}, {"delta": 2}, "delta"),
        ({"a": 0.5, "b": 0.5}, {"temperature": 2}, "no setting temperature; it has rho, floor"),
    ],
)
def test_bad_settings_are_refused(ratio, options, message):
    with pytest.raises(ValueError, match=message):
        make_policy("drpruning", ratio, STEPS, **options)


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="choose one of drpruning, naive_dro"):
        make_policy("adam", RATIO, STEPS)
    with pytest.raises(ValueError, match="sheared needs a reference_loss"):
        Sheared(RATIO)
    with pytest.raises(ValueError, match="alpha"):
        CVaR(RATIO, alpha=0)
    with pytest.raises(ValueError, match="eta"):
        GroupDRO(RATIO, eta=-1)
    policy = built("drpruning")
    with pytest.raises(ValueError, match="unknown domains: law"):
        policy.update(0, losses_at(0) | {"law": 1.0})
    policy.update(100, losses_at(100))
    with pytest.raises(ValueError, match="step 50"):
        policy.update(50, losses_at(50))


# --- light


def test_the_documented_example_runs():
    page = Path(__file__).parents[2] / "docs" / "scheduling.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)  # noqa: S102
    assert names["decision"].explanation.ratio_updated


def test_import_needs_neither_torch_nor_scipy():
    code = (
        "import sys, drpruning.scheduling as s; "
        "s.make_policy('drpruning', {'a': 1.0}, 10).update(0, {'a': 1.0}); "
        "assert not {'torch', 'scipy', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
