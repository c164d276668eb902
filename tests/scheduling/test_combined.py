"""`forecast="combine"`: reference losses stay, and forecasts count beside them."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.scheduling import Decision, DRPruning

RATIO = {"web": 0.6, "books": 0.2, "code": 0.12, "wiki": 0.08}
SOURCE = {"web": 2.3, "books": 2.0, "code": 1.2, "wiki": 1.6}
STEPS, EVERY = 400, 20


def steered(**options: Any) -> DRPruning:
    return DRPruning(RATIO, STEPS, **({"reference_loss": SOURCE} | options))


class Healing:
    """Losses of a pruned model: a law in the data that each domain has had."""

    def __init__(self, seed: int, noise: float = 2e-3) -> None:
        rng = np.random.default_rng(seed)
        self.fall, self.beta = rng.uniform(0.4, 1.5, 4), rng.uniform(0.2, 0.6, 4)
        self.start = rng.uniform(5, 30, 4)
        self.noise = noise * rng.normal(size=(STEPS // EVERY + 1, 4))

    def at(self, step: int, data: dict[str, float]) -> dict[str, float]:
        own = np.array([data[name] for name in RATIO])
        fallen = self.fall * ((own + self.start) / self.start) ** -self.beta
        losses = np.array(list(SOURCE.values())) + fallen + self.noise[step // EVERY]
        return dict(zip(RATIO, losses.tolist(), strict=True))

    def run(self, policy: DRPruning, until: int = STEPS) -> list[Decision]:
        decisions: list[Decision] = []
        for step in range(0, until + 1, EVERY):
            data = dict.fromkeys(RATIO, 0.0)
            if decisions:
                last = decisions[-1]
                data = {n: last.data[n] + EVERY * last.ratio[n] for n in RATIO}
            source = step == 0 and policy.state_dict()["reference_loss"] is None
            losses = SOURCE if source else self.at(step, data)
            decisions.append(policy.update(step, losses))
        return decisions


def distances(decision: Decision) -> dict[str, tuple[float, float]]:
    """From the loss to the reference loss, and to the forecast."""
    loss, reference = decision.explanation.loss, decision.reference_loss or {}
    forecast = decision.forecast or {}
    return {n: (loss[n] - reference[n], loss[n] - forecast.get(n, math.nan)) for n in loss}


@given(
    seed=st.integers(0, 2**32 - 1),
    shift=st.lists(st.floats(-1.0, 3.0), min_size=4, max_size=4),
    unmeasured=st.integers(0, 4),
)
@settings(max_examples=30, deadline=None)
def test_the_excess_is_no_more_than_both_distances_allow(
    seed: int, shift: list[float], unmeasured: int
) -> None:
    given_losses = {n: v + by for (n, v), by in zip(SOURCE.items(), shift, strict=True)}
    policy = steered(reference_loss=given_losses, forecast_start=1.0)
    world, new = Healing(seed, noise=0.05), list(RATIO)[unmeasured:][:1]
    data = dict.fromkeys(RATIO, 0.0)
    for step in range(0, STEPS + 1, EVERY):
        losses = world.at(step, data)
        measured = {n: v for n, v in losses.items() if n not in new or step == STEPS}
        decision = policy.update(step, measured)
        data = {n: had + EVERY * decision.ratio[n] for n, had in data.items()}
    assert decision.excess is not None
    assert decision.forecast is not None
    assert decision.explanation.no_forecast.keys() == set(new)
    sums = np.zeros(2)
    for name, (behind, reachable) in distances(decision).items():
        excess = decision.excess[name]
        if name in new:
            continue
        if min(behind, reachable) <= 0:
            assert excess == 0
        else:
            assert 0 <= excess <= behind**0.75 * reachable**0.25 * (1 + 1e-9)
        sums += excess, max(behind, 0)
    for name in new:  # counts as far as those with a forecast do on average
        part = sums[0] / sums[1] if sums[1] else 1.0
        assert decision.excess[name] == pytest.approx(part * max(distances(decision)[name][0], 0))


@pytest.mark.parametrize("seed", range(3))
def test_without_noise_it_is_their_geometric_mean(seed: int) -> None:
    decisions = Healing(seed, noise=0.0).run(steered())[6:-1]
    for decision in decisions:
        assert decision.excess is not None
        for name, (behind, reachable) in distances(decision).items():
            assert min(behind, reachable) < decision.excess[name] < max(behind, reachable)
            mean = behind**0.75 * reachable**0.25
            assert decision.excess[name] == pytest.approx(min(mean, 10 * reachable), rel=0.05)


@pytest.mark.parametrize("origin", ["given", "source"])
def test_reference_losses_stay_and_keep_their_origin(origin: str) -> None:
    reference = SOURCE if origin == "given" else "source"
    decisions = Healing(1).run(steered(reference_loss=reference))
    forecasts = [decision.forecast for decision in decisions]
    assert forecasts[:4] == [None] * 4, "forecasts begin at a fifth of training"
    assert all(forecast is not None for forecast in forecasts[4:])
    for decision in decisions:
        assert decision.reference_loss == SOURCE
        assert decision.explanation.reference_origin == dict.fromkeys(RATIO, origin)
        behind = {name: pair[0] for name, pair in distances(decision).items()}
        assert (decision.excess == behind) == (decision.forecast is None)


@pytest.mark.parametrize("reference", [SOURCE, "source"], ids=["given", "source"])
@pytest.mark.parametrize("stop", [0, 1, 7, 15])
def test_resumed_equals_uninterrupted(reference: Any, stop: int) -> None:
    settings = {"reference_loss": reference, "loss_weight": 0.7}
    uninterrupted, first, second = (steered(**settings) for _ in range(3))
    decisions = Healing(2).run(uninterrupted)
    evaluations = [
        (EVERY * i, SOURCE if reference == "source" and i == 0 else loss)
        for i, loss in enumerate(losses_of(decisions))
    ]
    expected = [first.update(*evaluation) for evaluation in evaluations]
    resumed_from = steered(**settings)
    for evaluation in evaluations[:stop]:
        resumed_from.update(*evaluation)
    state = json.dumps(resumed_from.state_dict(), allow_nan=False)
    second.load_state_dict(json.loads(state))
    assert [second.update(*evaluation) for evaluation in evaluations[stop:]] == expected[stop:]
    assert second.state_dict() == first.state_dict()


def losses_of(decisions: list[Decision]) -> list[dict[str, float]]:
    return [dict(decision.explanation.loss) for decision in decisions]


@pytest.mark.parametrize("seed", range(4))
def test_noise_gets_no_more_than_its_reference_share_however_low_its_reference(seed: int) -> None:
    """A domain that cannot be learned has the largest excess, until its forecast says so."""
    policy, world = steered(reference_loss=SOURCE | {"wiki": 0.5}), Healing(seed)
    rng, data = np.random.default_rng(seed), dict.fromkeys(RATIO, 0.0)
    centre, taken = dict(RATIO), []
    for step in range(0, STEPS + 1, EVERY):
        losses = world.at(step, data) | {"wiki": 6.0 + 2e-3 * float(rng.normal())}
        decision = policy.update(step, losses)
        taken.append(decision.ratio["wiki"] - centre["wiki"])
        centre = decision.reference_ratio
        data = {n: had + EVERY * decision.ratio[n] for n, had in data.items()}
    assert min(taken[:4]) > 0.05, "without a forecast it takes data from the others"
    assert max(taken[4:]) <= 1e-9


def test_a_forecast_that_is_refused_does_not_count() -> None:
    policy = steered(min_quality=1.0)
    for decision in Healing(3).run(policy):
        behind = {name: pair[0] for name, pair in distances(decision).items()}
        assert decision.excess == behind
    assert decision.forecast is not None
    assert decision.explanation.refused.keys() == RATIO.keys()
    assert decision.explanation.unusable == {}


def test_without_reference_losses_forecasts_are_the_reference_losses() -> None:
    combine, replace = (
        Healing(4).run(steered(reference_loss=None, forecast=word))
        for word in ("combine", "replace")
    )
    assert combine == replace
    assert combine[-1].reference_loss == combine[-1].forecast


def test_forecasts_of_the_phase_before_are_handed_over_as_forecasts() -> None:
    """They are not reference losses that anybody has given, so new forecasts replace them."""
    before, after = steered(reference_loss=None), steered(reference_loss=None)
    handed_over = Healing(5).run(before)[-1].reference_loss
    after.continue_from(before.state_dict())
    decisions = Healing(6).run(after)
    assert decisions[0].reference_loss == handed_over
    assert decisions[-1].reference_loss == decisions[-1].forecast != handed_over


def test_never_needs_reference_losses() -> None:
    policy = steered(reference_loss=None, forecast="never")
    before = policy.state_dict()
    with pytest.raises(BadInput, match="forecast: 'never' needs reference losses; give reference"):
        policy.update(0, SOURCE)
    assert policy.state_dict() == before
    policy.continue_from(before | {"reference_loss": SOURCE})
    assert policy.update(0, SOURCE).excess == dict.fromkeys(SOURCE, 0.0)
    assert steered(reference_loss="source", forecast="never").update(0, SOURCE).forecast is None


@pytest.mark.parametrize("word", ["always", True, None])
def test_wrong_words_are_refused_with_those_there_are(word: Any) -> None:
    with pytest.raises(
        BadInput, match=f"forecast must be one of combine, replace, never, not {word!r}"
    ):
        steered(forecast=word)


def test_a_domain_without_a_forecast_that_is_past_its_reference_asks_for_nothing() -> None:
    """As the others do: a negative excess would lower the mean that they are compared with."""
    policy, world = steered(reference_loss=SOURCE | {"wiki": 9.0}), Healing(3)
    data = dict.fromkeys(RATIO, 0.0)
    for step in range(0, STEPS // 2 + 1, EVERY):
        losses = {n: v for n, v in world.at(step, data).items() if n != "wiki"}
        decision = policy.update(step, losses)
        data = {n: had + EVERY * decision.ratio[n] for n, had in data.items()}
    decision = policy.update(STEPS // 2 + EVERY, world.at(STEPS // 2 + EVERY, data))
    assert decision.explanation.no_forecast.keys() == {"wiki"}
    assert decision.excess is not None
    assert decision.excess["wiki"] == 0.0
    assert all(excess >= 0 for excess in decision.excess.values())
