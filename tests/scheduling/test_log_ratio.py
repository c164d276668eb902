"""Group DRO over many evaluations: nothing that a domain has lost or won is ever forgotten."""

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.scheduling import GroupDRO, Sheared, change_domains

LOSS = st.floats(-1.0, 30.0)


def exact(initial, eta, history):
    """The softmax of log initial ratio + eta x sum of losses, with sums as fractions.

    Also the largest logarithm of a quotient of two shares on the way, which bounds the rounding.
    """
    sums = {d: Fraction(math.log(share)) for d, share in initial.items()}
    widest = 1.0
    for losses in history:
        sums = {d: total + Fraction(eta) * Fraction(losses[d]) for d, total in sums.items()}
        widest = max(widest, float(max(sums.values()) - min(sums.values())))
    top = max(sums.values())
    weights = {d: math.exp(float(total - top)) for d, total in sums.items()}
    return {d: weight / math.fsum(weights.values()) for d, weight in weights.items()}, widest


@settings(max_examples=60)
@given(data=st.data())
def test_the_ratio_is_the_softmax_of_all_losses(data):
    domains = "abcde"[: data.draw(st.integers(2, 5), label="domains")]
    weights = [data.draw(st.floats(0.01, 1.0)) for _ in domains]
    initial = {d: w / sum(weights) for d, w in zip(domains, weights, strict=True)}
    eta = data.draw(st.sampled_from([0.01, 1.0, 2.0, 300.0]), label="eta")
    losses = st.fixed_dictionaries(dict.fromkeys(domains, LOSS))
    stretches = data.draw(st.lists(st.tuples(losses, st.integers(1, 300)), max_size=3))
    history = [found for found, times in stretches for _ in range(times)]
    resumed = data.draw(st.integers(0, max(len(history) - 1, 0)), label="resumed")

    policy = GroupDRO(initial, eta=eta)
    for step, found in enumerate(history):
        if step == resumed:
            state = json.loads(json.dumps(policy.state_dict(), allow_nan=False))
            policy = GroupDRO(initial, eta=eta)
            policy.load_state_dict(state)
        policy.update(step=step, losses=found)
    expected, widest = exact(initial, eta, history)
    rounding = 1e-15 * (len(history) + 10) * widest
    assert policy.ratio == pytest.approx(expected, abs=rounding, rel=0)
    assert sum(policy.ratio.values()) == pytest.approx(1, abs=1e-12)


def test_a_domain_comes_back_after_hundreds_of_evaluations():
    policy = GroupDRO({"a": 0.5, "b": 0.5}, eta=300.0)
    for step in range(450):
        policy.update(step=step, losses={"a": 3.0, "b": 1.5})
    assert policy.ratio == {"a": 1.0, "b": 0.0}
    for step in range(450, 900):
        policy.update(step=step, losses={"a": 1.5, "b": 3.0})
    assert policy.ratio == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-6)
    policy.update(step=900, losses={"a": 1.5, "b": 3.0})
    assert policy.ratio["b"] == 1.0


def test_losses_that_overflow_leave_a_ratio_and_a_state_in_json():
    policy = GroupDRO({"a": 0.5, "b": 0.3, "c": 0.2}, eta=1e300)
    for step, worst in enumerate("abcabbccc"):
        losses = dict.fromkeys("abc", -1e300) | {worst: 1e300}
        decision = policy.update(step=step, losses=losses)
        assert sum(decision.ratio.values()) == pytest.approx(1)
        json.dumps(policy.state_dict(), allow_nan=False)


@pytest.mark.parametrize("take", ["load_state_dict", "continue_from"])
def test_a_state_without_logarithms_gives_those_of_its_ratio(take):
    """States of older runs, and of other policies, have none; a share of 0 can grow again."""
    state = GroupDRO({"a": 0.5, "b": 0.5}, eta=2.0).state_dict()
    del state["log_ratio"]
    policy = GroupDRO({"a": 0.5, "b": 0.5}, eta=2.0)
    getattr(policy, take)(state | {"ratio": {"a": 0.25, "b": 0.75}})
    decision = policy.update(step=1, losses={"a": 2.0, "b": 1.0})
    odds = math.exp(2) / 3
    assert decision.ratio["a"] == pytest.approx(odds / (1 + odds), rel=1e-12)

    getattr(policy, take)(state | {"ratio": {"a": 0.0, "b": 1.0}})
    for step in range(1, 400):
        policy.update(step=step, losses={"a": 2.0, "b": 1.0})
    assert policy.ratio["a"] > 0.99


def test_logarithms_of_another_ratio_are_refused():
    policy = GroupDRO({"a": 0.5, "b": 0.5})
    with pytest.raises(BadInput, match="log_ratio is of another ratio; remove it"):
        policy.load_state_dict(policy.state_dict() | {"ratio": {"a": 0.1, "b": 0.9}})


def test_a_change_of_domains_keeps_what_tiny_shares_are_to_one_another():
    policy = GroupDRO({"a": 0.4, "b": 0.3, "c": 0.3}, eta=300.0)
    for step in range(50):
        policy.update(step=step, losses={"a": 9.0, "b": 1.0, "c": 1.0})
    policy.update(step=50, losses={"a": 9.0, "b": 1.0, "c": 1.001})
    assert policy.ratio["b"] == policy.ratio["c"] == 0

    initial = {"b": 0.25, "new": 0.25, "c": 0.5}
    changed = GroupDRO(initial, eta=300.0)
    changed.load_state_dict(json.loads(json.dumps(change_domains(policy.state_dict(), initial))))
    odds = math.exp(0.3)
    expected = {"b": 0.75 / (1 + odds), "new": 0.25, "c": 0.75 * odds / (1 + odds)}
    assert changed.ratio == pytest.approx(expected, rel=1e-9)
    before = changed.ratio
    after = changed.update(step=51, losses={"b": 1.0, "new": 1.0, "c": 1.0}).ratio
    assert after == pytest.approx(before, rel=1e-9)


def test_kept_domains_whose_logarithms_are_at_the_end_of_the_scale_share_what_is_left():
    """A sum of 1 added to -1e308 is -1e308 again."""
    policy = GroupDRO({"a": 0.4, "b": 0.3, "c": 0.3}, eta=1e300)
    policy.update(step=0, losses={"a": 1e9, "b": 1.0, "c": 1.0})
    state = policy.state_dict()
    assert state["log_ratio"]["b"] == state["log_ratio"]["c"] < -1e307
    changed = change_domains(state, {"b": 0.4, "c": 0.4, "new": 0.2})
    assert changed["ratio"] == pytest.approx({"b": 0.4, "c": 0.4, "new": 0.2})


def test_sheared_takes_any_excess_and_shares_of_zero():
    """Its weights are smoothed at every step, so none is ever small enough to be lost."""
    policy = Sheared({"a": 0.5, "b": 0.5}, reference_loss={"a": 1.0, "b": 1.0})
    state = policy.state_dict()
    for ratio in ({"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}):
        policy.continue_from(state | {"ratio": ratio})
        decision = policy.update(step=0, losses={"a": 2000.0, "b": 1.0})
        share = decision.ratio["a"]
        assert share == pytest.approx(5e-5 if ratio["a"] == 0 else 1 - 5e-5)
    for step in range(1, 900):
        policy.update(step=step, losses={"a": 1.0, "b": 1001.0})
    assert policy.ratio["b"] == pytest.approx(1 - 5e-5)
