"""`reference_loss="source"`: the losses of the source model, from the first update of pruning."""

import json
import math
from typing import Any

import pytest

from drpruning.common.errors import BadInput
from drpruning.scheduling import (
    PAPER_SETTINGS,
    DRPruning,
    NaiveDRO,
    Policy,
    Sheared,
    change_domains,
)

RATIO = {"a": 0.6, "b": 0.3, "c": 0.1}
SOURCE = {"a": 2.0, "b": 1.0, "c": 1.5}
STEPS = 100
OURS = PAPER_SETTINGS | {"forecast": "combine"}


def drpruning(**options: Any) -> DRPruning:
    return DRPruning(RATIO, STEPS, **(OURS | {"reference_loss": "source"} | options))


def behind(step: int) -> dict[str, float]:
    """Pruned: losses above those of the source, b furthest."""
    return {"a": 2.2 + 1 / (step + 5), "b": 1.6 + 2 / (step + 5), "c": 1.6 + 1 / (step + 5)}


def made(kind: str) -> Policy:
    if kind == "sheared":
        return Sheared(RATIO, reference_loss="source")
    if kind == "naive_dro":
        return NaiveDRO(RATIO, reference_loss="source")
    return drpruning(forecast="never")


@pytest.mark.parametrize("kind", ["drpruning", "naive_dro", "sheared"])
def test_the_losses_at_step_0_are_the_reference_and_stay(kind: str) -> None:
    policy = made(kind)
    first = policy.update(0, SOURCE)
    assert first.reference_loss == SOURCE
    assert first.excess == dict.fromkeys(SOURCE, 0.0)
    assert first.ratio == pytest.approx(RATIO, abs=1e-4), "nothing is behind yet"
    for step in range(5, STEPS + 1, 5):
        decision = policy.update(step, behind(step))
        assert decision.reference_loss == SOURCE
        assert decision.forecast is None
        assert decision.explanation.reference_origin == dict.fromkeys(RATIO, "source")
        assert decision.excess == {d: behind(step)[d] - SOURCE[d] for d in RATIO}
    assert decision.ratio["b"] > RATIO["b"]


@pytest.mark.parametrize("kind", ["drpruning", "naive_dro", "sheared"])
def test_a_first_update_at_another_step_is_refused_and_changes_nothing(kind: str) -> None:
    policy = made(kind)
    before = policy.state_dict()
    with pytest.raises(BadInput, match=r"'source' .*at step 0, and the first update is at step 5"):
        policy.update(5, SOURCE)
    assert policy.state_dict() == before
    assert policy.update(0, SOURCE).reference_loss == SOURCE


@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_domain_that_the_source_was_not_measured_on_is_unusable(bad: float | None) -> None:
    policy = drpruning()
    first = policy.update(0, SOURCE | {"b": bad})
    assert first.reference_loss == {"a": 2.0, "c": 1.5}
    for step in range(5, STEPS, 5):
        decision = policy.update(step, behind(step))
        assert decision.reference_loss == {"a": 2.0, "c": 1.5}
        assert list(decision.explanation.reference_origin) == ["a", "c"]
        why = "it has no reference loss: the source model's was not measured"
        assert decision.explanation.unusable == {"b": why}
        assert decision.ratio == first.ratio


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_resumed_equals_uninterrupted(stop: int) -> None:
    steps = list(range(0, STEPS, 10))
    uninterrupted, first, second = drpruning(), drpruning(), drpruning()
    evaluations = [(step, behind(step) if step else SOURCE) for step in steps]
    expected = [uninterrupted.update(*evaluation) for evaluation in evaluations]
    for evaluation in evaluations[:stop]:
        first.update(*evaluation)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(*evaluation) for evaluation in evaluations[stop:]] == expected[stop:]


@pytest.mark.parametrize("reference_loss", ["source", None])
def test_the_phase_after_pruning_compares_with_the_source_too(reference_loss: str | None) -> None:
    pruning, recovery = drpruning(), drpruning(reference_loss=reference_loss)
    pruning.update(0, SOURCE)
    pruning.update(50, behind(50))
    recovery.continue_from(pruning.state_dict())
    for step in range(0, STEPS, 5):
        decision = recovery.update(step, behind(step))
        assert decision.reference_loss == SOURCE
        assert decision.explanation.reference_origin == dict.fromkeys(RATIO, "source")
        assert (decision.forecast is None) == (step < STEPS / 5)


@pytest.mark.parametrize("forecast", ["combine", "replace", "never"])
def test_losses_that_are_given_stay_given_unless_forecasts_are_to_replace_them(
    forecast: str,
) -> None:
    replaced = forecast == "replace"
    policy = drpruning(reference_loss=SOURCE, forecast=forecast)
    decisions = [policy.update(step, behind(step)) for step in range(0, STEPS, 5)]
    assert decisions[0].explanation.reference_origin == dict.fromkeys(RATIO, "given")
    assert (decisions[-1].reference_loss != SOURCE) == replaced
    assert (decisions[-1].forecast is None) == (forecast == "never")
    origin = "forecast" if replaced else "given"
    assert decisions[-1].explanation.reference_origin == dict.fromkeys(RATIO, origin)


def test_forecasts_of_the_phase_before_are_replaced_by_those_of_this_one() -> None:
    pruning, recovery = drpruning(reference_loss=None), drpruning(reference_loss=None)
    for step in range(0, STEPS, 5):
        handed_over = pruning.update(step, behind(step))
    recovery.continue_from(pruning.state_dict())
    decisions = [
        recovery.update(step, {d: v + 1 for d, v in behind(step).items()})
        for step in range(0, STEPS, 5)
    ]
    first, decision = decisions[0], decisions[-1]
    assert first.reference_loss == handed_over.reference_loss
    assert first.explanation.reference_origin == dict.fromkeys(RATIO, "forecast")
    assert decision.reference_loss == pytest.approx(decision.forecast, abs=0.1)
    assert decision.reference_loss["a"] > handed_over.reference_loss["a"] + 0.5


def test_losses_without_an_origin_count_as_given() -> None:
    """As in what another run has exported to start from."""
    policy = drpruning(reference_loss=None)
    start = {"version": 2, "step": None, "ratio": RATIO, "reference_loss": SOURCE}
    policy.continue_from(start)
    decision = policy.update(0, behind(0))
    assert decision.explanation.reference_origin == dict.fromkeys(RATIO, "given")


def test_wrong_words_are_refused() -> None:
    with pytest.raises(BadInput, match="losses by domain or 'source', not 'teacher'"):
        drpruning(reference_loss="teacher")
    state = drpruning(reference_loss=SOURCE).state_dict()
    with pytest.raises(BadInput, match="origin of a reference loss is one of given, source"):
        drpruning().load_state_dict(state | {"reference_origin": {"a": "heard"}})


def test_a_new_domain_beside_given_losses_needs_its_own_and_says_so() -> None:
    """Its forecast would be the only one among reference losses of another kind."""
    old = drpruning(reference_loss=SOURCE)
    for step in range(0, 50, 5):
        old.update(step, behind(step))
    shares = {"a": 0.5, "b": 0.3, "new": 0.2}
    losses = {"a": 2.3, "b": 1.7, "new": 3.0}
    for given, why in (
        (None, {"new": "it has no reference loss; give it one"}),
        ({"new": 2.5}, {}),
    ):
        policy = DRPruning(shares, STEPS, **OURS)
        policy.load_state_dict(change_domains(old.state_dict(), shares, given))
        for step in range(50, STEPS, 5):
            decision = policy.update(step, losses)
            assert decision.explanation.unusable == why
            assert (decision.reference_loss or {}).get("new") == (given or {}).get("new")
        assert set(decision.explanation.reference_origin.values()) == {"given"}
