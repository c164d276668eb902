"""DRPruning's reference loss: which forecasts count, and what happens where none can be trusted."""

import json

import numpy as np
import pytest
from curves import damaged

from drpruning.scheduling import PAPER_SETTINGS, DRPruning, NaiveDRO, Sheared, change_domains

STEPS = 1000
PAIR = {"good": 0.5, "bad": 0.5}


def steered(*args, **options):
    """DRPruning as the paper has it, but with forecasts that must be good."""
    return DRPruning(*args, **(PAPER_SETTINGS | {"min_quality": 0.5} | options))


def good(step):
    return 2 + 0.1 * (step / STEPS) ** -0.4


def followed(policy, losses, steps=range(50, 601, 50), **more):
    """Decisions on `losses(step)`, one an evaluation."""
    return [policy.update(step, losses(step), **more) for step in steps]


BAD = {
    "rising": lambda step: 2 + step / STEPS,
    "diverging": lambda step: 2 + 0.1 * np.exp(step / 100),
    "noisy": lambda step: 2 + 1.5 * np.random.default_rng(step).normal(),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_fit_keeps_the_given_reference_and_says_so(kind):
    given = {"good": 1.5, "bad": 1.25}
    policy = steered(PAIR, STEPS, floor=0.1, reference_loss=given)
    for decision in followed(policy, lambda s: {"good": good(s), "bad": BAD[kind](s)})[5:]:
        assert decision.reference_loss["bad"] == given["bad"]
        assert decision.reference_loss["good"] != given["good"]
        assert set(decision.explanation.refused) == {"bad"}
        assert decision.explanation.forecast_quality["bad"] < 0.5
        assert decision.explanation.ratio_updated
    why = decision.explanation.refused["bad"]
    assert why == "its losses rise" if kind != "noisy" else "quality" in why


def test_a_bad_fit_after_a_good_one_keeps_what_was_forecast():
    def losses(step):
        return {"good": good(step), "bad": good(step) + max(0, step - 400) / 200}

    decisions = followed(steered(PAIR, STEPS, floor=0.1), losses, range(50, 901, 50))
    held = [d for d in decisions if "bad" in d.explanation.refused]
    assert len(held) >= 3
    before = decisions[decisions.index(held[0]) - 1].reference_loss["bad"]
    assert all(d.reference_loss["bad"] == before for d in held)


def test_without_any_reference_a_bad_fit_leaves_the_smallest_loss_until_a_good_one_comes():
    def losses(step):
        bend = BAD["rising"](step) if step <= 400 else 1.9 + 0.1 * (step / 400) ** -2
        return {"good": good(step), "bad": bend}

    policy = steered(PAIR, STEPS, floor=0.1)
    decisions = followed(policy, losses, range(50, 1001, 50))
    early, late = decisions[5], decisions[-1]
    assert early.explanation.refused == {"bad": "its losses rise"}
    assert early.reference_loss["bad"] == losses(50)["bad"]
    assert early.explanation.ratio_updated
    assert late.explanation.refused == {}
    assert late.reference_loss["bad"] != losses(50)["bad"]


def test_every_finite_fit_is_taken_at_quality_0():
    policy = steered(PAIR, STEPS, floor=0.1, min_quality=0)
    for decision in followed(policy, lambda s: {"good": good(s), "bad": BAD["noisy"](s)}):
        assert not decision.explanation.refused


def test_intervals_hold_the_forecast_and_left_out_points_are_named():
    def losses(step):
        return {"good": good(step), "bad": 2 + 0.2 * (min(step, 300) / STEPS) ** -0.5}

    last = followed(steered(PAIR, STEPS, floor=0.1), losses, range(25, 1001, 25))[-1]
    for name, (low, high) in last.explanation.forecast_interval.items():
        assert low <= last.forecast[name] <= high
    assert list(last.explanation.forecast_since) == ["bad"]
    assert 200 <= last.explanation.forecast_since["bad"] <= 350
    assert last.forecast["bad"] == pytest.approx(losses(1000)["bad"], abs=1e-3)
    assert last.explanation.loss == losses(1000)


def noisy_losses(step):
    noise = 0.02 * np.random.default_rng(step).normal(size=2)
    return {"good": good(step) + noise[0], "bad": good(step) + 0.3 + noise[1]}


def test_reference_rules_are_ordered_and_the_credible_one_lies_in_the_newest_interval():
    rules = {
        rule: followed(steered(PAIR, STEPS, reference_rule=rule), noisy_losses, range(25, 1001, 25))
        for rule in ("minimum", "credible", "latest")
    }
    forecasting = [i for i, d in enumerate(rules["minimum"]) if d.forecast is not None]
    for i in forecasting:
        lowest, credible, latest = (rules[r][i].reference_loss for r in rules)
        for name in PAIR:
            low = rules["credible"][i].explanation.forecast_interval[name][0]
            seen = min(noisy_losses(s)[name] for s in range(25, 25 * (i + 2), 25))
            assert lowest[name] <= credible[name] + 1e-12
            assert credible[name] >= min(low, seen)
            assert latest[name] == rules["latest"][i].forecast[name]
    values = [rules["minimum"][i].reference_loss["good"] for i in forecasting]
    assert values == sorted(values, reverse=True)
    truth = good(STEPS)
    errors = {
        rule: np.mean([abs(d[i].reference_loss["good"] - truth) for i in forecasting])
        for rule, d in rules.items()
    }
    assert errors["credible"] < errors["minimum"]


def test_losses_of_a_larger_model_do_not_bound_the_forecast():
    """In pruning the loss rises with the sparsity, above that of the source model."""
    steps, params, losses, truth = damaged(np.random.default_rng(0), 20, 64, 3e-3)
    ratio = {f"d{i}": 0.05 for i in range(20)}
    policy = steered(ratio, int(steps[-1]), 1e9, floor=0.01)
    for i, step in enumerate(steps[:40]):
        by_domain = dict(zip(ratio, losses[:, i].tolist(), strict=True))
        decision = policy.update(int(step), by_domain, float(params[i]))
    reference = np.array([decision.reference_loss[name] for name in ratio])
    smallest = losses[:, :40].min(axis=1)
    assert np.median(np.abs(reference - truth)) < 0.2 * np.median(np.abs(smallest - truth))
    at_size = np.where(params[:40] <= 1.05e9, losses[:, :40], np.inf).min(axis=1)
    assert np.all(reference <= at_size)


def test_a_new_domain_begins_with_its_share_and_one_that_is_gone_leaves_its_own():
    old = steered({"a": 0.5, "b": 0.3, "c": 0.2}, STEPS, floor=0.1)
    followed(old, lambda s: {"a": good(s), "b": good(s) + 0.1, "c": good(s) + 0.3})
    before = json.loads(json.dumps(old.state_dict()))
    shares = {"new": 0.2, "a": 0.4, "b": 0.4}
    state = change_domains(before, shares)
    assert before == json.loads(json.dumps(old.state_dict())), "the old state stays as it is"
    policy = steered(shares, STEPS, floor=0.1)
    policy.load_state_dict(json.loads(json.dumps(state)))
    assert policy.ratio["new"] == 0.2
    assert policy.ratio["a"] / policy.ratio["b"] == pytest.approx(
        before["ratio"]["a"] / before["ratio"]["b"]
    )
    assert sum(policy.ratio.values()) == pytest.approx(1, abs=1e-12)
    first = policy.update(650, {"a": good(650), "b": good(650) + 0.1, "new": 3.0})
    assert not first.explanation.ratio_updated
    assert first.explanation.unusable == {"new": "it has no reference loss yet"}
    assert first.reference_loss["a"] <= before["reference_loss"]["a"]
    for step in range(700, 851, 50):
        decision = policy.update(
            step, {"a": good(step), "b": good(step) + 0.1, "new": 2 + (step / 600) ** -3}
        )
    assert decision.explanation.ratio_updated
    assert set(decision.reference_loss) == set(shares)


def test_a_new_domain_with_a_reference_loss_is_steered_at_once():
    for old in (NaiveDRO(PAIR), Sheared(PAIR, reference_loss={"good": 2.0, "bad": 2.0})):
        old.update(10, {"good": 2.5, "bad": 2.2})
        shares = {"good": 0.4, "bad": 0.4, "new": 0.2}
        state = change_domains(old.state_dict(), shares, {"new": 1.0})
        policy = type(old)(shares, reference_loss=dict.fromkeys(shares, 9.0))
        policy.load_state_dict(state)
        decision = policy.update(20, {"good": 2.1, "bad": 2.1, "new": 4.0})
        assert decision.explanation.ratio_updated
        assert decision.reference_loss["new"] == 1.0
        assert decision.ratio["new"] > 0.2


def test_a_new_domain_takes_the_reference_loss_of_the_policy_that_loads_the_state():
    state = change_domains(NaiveDRO(PAIR).state_dict(), {"good": 0.5, "new": 0.5})
    given = NaiveDRO({"good": 0.5, "new": 0.5}, reference_loss={"good": 2.0, "new": 1.0}, floor=0.1)
    given.load_state_dict(state)
    decision = given.update(20, {"good": 2.0, "new": 3.0})
    assert decision.reference_loss == {"good": 0.0, "new": 1.0}
    assert decision.explanation.ratio_updated


def test_a_pruned_model_that_never_was_of_final_size_is_named():
    policy = steered(PAIR, STEPS, 1e9, floor=0.1)
    noisy = {"good": BAD["noisy"], "bad": BAD["noisy"]}
    last = followed(policy, lambda s: {d: f(s) for d, f in noisy.items()}, params=2e9)[-1]
    assert not last.explanation.ratio_updated
    why = "it has no reference loss yet: no model of final size was evaluated"
    assert last.explanation.unusable == dict.fromkeys(PAIR, why)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": {"good": 2.0, "bad": -1.0}}, "at least 0 everywhere and sum to 1"),
        ({"ratio": {"good": 1.0}}, "the state is of the domains good"),
        ({"step": ...}, "the state lacks step"),
    ],
)
def test_a_state_that_is_none_is_refused(change, message):
    state = {**NaiveDRO(PAIR).state_dict(), **change}
    state = {name: value for name, value in state.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        NaiveDRO(PAIR).load_state_dict(state)


def test_losses_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="losses must be numbers, not 'low'"):
        NaiveDRO(PAIR).update(1, {"good": "low", "bad": 1.0})


def test_wrong_changes_of_domains_are_refused():
    state = NaiveDRO(PAIR).state_dict()
    with pytest.raises(ValueError, match="none of the domains good, bad stays"):
        change_domains(state, {"x": 1.0})
    with pytest.raises(ValueError, match="good is not a new domain"):
        change_domains(state, {"good": 0.5, "x": 0.5}, {"good": 1.0})
    with pytest.raises(ValueError, match="must be positive everywhere and sum to 1"):
        change_domains(state, {"good": 0.5, "x": 0.6})
    with pytest.raises(ValueError, match="reference_loss of x must be finite"):
        change_domains(state, {"good": 0.5, "x": 0.5}, {"x": float("nan")})
    with pytest.raises(ValueError, match=r"unknown domains: x.*change_domains adds one"):
        NaiveDRO(PAIR).update(1, {"good": 1, "bad": 1, "x": 1})


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="min_quality must lie between 0 and 1"):
        steered(PAIR, STEPS, min_quality=1.5)
    with pytest.raises(ValueError, match="reference_rule must be one of minimum, credible, latest"):
        steered(PAIR, STEPS, reference_rule="smallest")
