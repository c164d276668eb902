"""The data that each domain has had, in every policy."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.scheduling import (
    PAPER_SETTINGS,
    POLICY_NAMES,
    DRPruning,
    NaiveDRO,
    Policy,
    change_domains,
    make_policy,
)

RATIO = {"a": 0.6, "b": 0.3, "c": 0.1}
STEPS = 100


def built(name: str, ratio: dict[str, float] = RATIO, **options: Any) -> Policy:
    if name == "sheared":
        options = {"reference_loss": dict.fromkeys(ratio, 1.0)} | options
    if name == "drpruning":
        options = PAPER_SETTINGS | {"reference_loss": dict.fromkeys(ratio, 1.0)} | options
    return make_policy(name, ratio, STEPS, **options)


def losses(step: int) -> dict[str, float]:
    return {d: 1 + i + (10 - i) / (step + 10) for i, d in enumerate(RATIO)}


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_data_are_the_shares_in_force_times_the_steps_under_them(name: str) -> None:
    policy, steps, expected = built(name), [0, 3, 10, 10, 40, 100], dict.fromkeys(RATIO, 0.0)
    before = 0
    for step in steps:
        in_force = policy.ratio
        decision = policy.update(step, losses(step))
        expected = {d: v + in_force[d] * (step - before) for d, v in expected.items()}
        assert decision.data == pytest.approx(expected, abs=1e-12)
        assert sum(decision.data.values()) == pytest.approx(step)
        churn = sum(abs(decision.ratio[d] - in_force[d]) for d in RATIO)
        assert decision.explanation.churn == pytest.approx(churn, abs=1e-15)
        before = step


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_realised_shares_count_in_place_of_the_ratio(data: st.DataObject) -> None:
    policy, expected, before = built("group_dro", eta=1.0), dict.fromkeys(RATIO, 0.0), 0
    for _ in range(data.draw(st.integers(1, 6))):
        step = before + data.draw(st.integers(0, 30))
        weights = [data.draw(st.floats(0.0, 1.0)) for _ in RATIO]
        total = sum(weights)
        given_shares = total > 0.01 and data.draw(st.booleans())
        shares = dict(zip(RATIO, (w / max(total, 0.01) for w in weights), strict=True))
        trained = shares if given_shares else policy.ratio
        found = policy.update(step, losses(step), shares=shares if given_shares else None).data
        expected = {d: v + trained[d] * (step - before) for d, v in expected.items()}
        assert found == pytest.approx(expected, abs=1e-9)
        before = step


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 0.5, "b": 0.5}, "shares lacks the domains c"),
        ({"a": 0.5, "b": 0.4, "c": 0.1, "d": 0.0}, "shares has unknown domains d"),
        ({"a": 0.5, "b": 0.4, "c": 0.2}, "shares must be at least 0 everywhere and sum to 1"),
        ({"a": 1.2, "b": -0.2, "c": 0.0}, "shares must be at least 0 everywhere and sum to 1"),
        ({"a": float("nan"), "b": 0.5, "c": 0.5}, "shares must be finite"),
    ],
)
def test_wrong_shares_are_refused_and_change_nothing(
    shares: dict[str, float], message: str
) -> None:
    policy = built("drpruning")
    policy.update(10, losses(10))
    before = policy.state_dict()
    with pytest.raises(BadInput, match=message):
        policy.update(20, losses(20), shares=shares)
    assert policy.state_dict() == before


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_resumed_policy_has_its_data_and_one_that_continues_starts_at_none(name: str) -> None:
    policy = built(name)
    for step in (0, 10, 30):
        policy.update(step, losses(step))
    state = json.loads(json.dumps(policy.state_dict()))
    resumed, next_phase = built(name), built(name)
    resumed.load_state_dict(state)
    assert resumed.update(50, losses(50)) == policy.update(50, losses(50))
    next_phase.continue_from(state)
    assert next_phase.state_dict()["data"] == dict.fromkeys(RATIO, 0.0)
    first = next_phase.update(7, losses(0))
    assert first.data == pytest.approx({d: 7 * share for d, share in state["ratio"].items()})


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_state_of_version_1_is_refused_with_the_remedy(name: str) -> None:
    state = built(name).state_dict()
    for accept in (built(name).load_state_dict, built(name).continue_from):
        with pytest.raises(BadInput, match="did not record the data of each domain; start the ph"):
            accept({name: v for name, v in state.items() if name != "data"} | {"version": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"a": 1.0, "b": -1.0, "c": 0.0}}, "data must be at least 0 for every domain"),
        ({"data": {"a": 1.0, "b": 1.0}}, "data lacks the domains c"),
        ({"data": ...}, "the state lacks data"),
    ],
)
def test_a_state_without_usable_data_is_refused(change: dict[str, Any], message: str) -> None:
    changed = built("constant").state_dict() | change
    state = {name: value for name, value in changed.items() if value is not ...}
    with pytest.raises(BadInput, match=message):
        built("constant").load_state_dict(state)


def test_kept_domains_keep_their_data_and_new_ones_have_none() -> None:
    old = NaiveDRO(RATIO)
    for step in (0, 10, 30):
        old.update(step, losses(step))
    had = old.state_dict()["data"]
    shares = {"new": 0.2, "a": 0.4, "b": 0.4}
    policy = NaiveDRO(shares)
    policy.load_state_dict(change_domains(old.state_dict(), shares))
    decision = policy.update(40, {"a": 1.0, "b": 2.0, "new": 3.0})
    assert decision.data["new"] == pytest.approx(0.2 * 10)
    assert decision.data["a"] > had["a"]
    assert decision.data["a"] + decision.data["b"] == pytest.approx(had["a"] + had["b"] + 0.8 * 10)


def test_the_history_of_drpruning_follows_a_change_of_domains() -> None:
    old = DRPruning(RATIO, STEPS, **(PAPER_SETTINGS | {"floor": 0.05}))
    for step in (0, 10, 30):
        old.update(step, losses(step))
    before = old.state_dict()["history"]["data"]
    state = change_domains(old.state_dict(), {"new": 0.2, "a": 0.4, "b": 0.4})
    data = state["history"]["data"]
    assert data == {"new": [0.0, 0.0, 0.0], "a": before["a"], "b": before["b"]}
