"""ADO and equal shares: worked examples, what they wait for, changes of domains."""

import json
import math

import numpy as np
import pytest

from drpruning.scheduling import ADO, Equal, change_domains
from drpruning.scheduling.policy import Ratio

STEPS = 1000
PRIOR = {"web": 0.6, "code": 0.3, "law": 0.1}
LAWS = {"web": (0.5, 0.3, 2.0), "code": (2.0, 0.5, 1.0), "law": (5.0, 0.2, 1.5)}


def loss(name: str, step: int) -> float:
    """On a power law of the steps."""
    A, beta, E = LAWS[name]
    return A * max(step, 1) ** -beta + E


def losses(step: int) -> Ratio:
    return {name: loss(name, step) for name in PRIOR}


def preferences(step: int, credit: Ratio) -> Ratio:
    """Prior times square root of the credit times the law's fall per step, normalised."""
    raw = {}
    for name, (A, beta, _) in LAWS.items():
        raw[name] = PRIOR[name] * credit[name] ** 0.5 * beta * A * step**-beta / step
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def mixed(preference: Ratio, mean: Ratio) -> Ratio:
    return {name: 0.1 * preference[name] + 0.9 * mean[name] for name in preference}


def test_ado_by_hand() -> None:
    policy = ADO(PRIOR, STEPS)
    for step in (0, 50, 100, 150):
        assert policy.update(step, losses(step)).ratio == pytest.approx(PRIOR)
    first = preferences(200, PRIOR)  # the shares in force were the prior all along
    ratio = policy.update(200, losses(200)).ratio
    assert ratio == pytest.approx(mixed(first, PRIOR), abs=1e-4)
    # 50 steps later: the first preference held for a fifth of the steps, the prior before, and
    # the credit has moved to the ratio of these steps but for 0.9**50.
    second = preferences(250, {d: 0.9**50 * PRIOR[d] + (1 - 0.9**50) * ratio[d] for d in PRIOR})
    mean = {d: 0.8 * PRIOR[d] + 0.2 * first[d] for d in PRIOR}
    assert policy.update(250, losses(250)).ratio == pytest.approx(mixed(second, mean), abs=1e-4)


def test_ado_gives_most_to_what_falls_fastest_and_never_less_than_a_tenth_of_a_percent() -> None:
    even = dict.fromkeys(PRIOR, 1 / 3)
    policy = ADO(even, STEPS)
    for step in range(0, STEPS, 50):
        curve = losses(step) | {"web": 3.0}
        ratio = policy.update(step, curve).ratio
    assert ratio["law"] > ratio["code"] > ratio["web"] >= 0.1 * 0.01
    assert sum(ratio.values()) == pytest.approx(1)


def test_ado_says_what_it_waits_for() -> None:
    policy = ADO(PRIOR, STEPS)
    for step in (0, 50, 100):
        explanation = policy.update(step, losses(step)).explanation
        assert not explanation.ratio_updated
    reason = "it has 2 of the 4 points that a power law needs"
    assert explanation.unusable == dict.fromkeys(PRIOR, reason)


def test_ado_leaves_out_a_missing_point_and_its_ratio_stays() -> None:
    policy = ADO(PRIOR, STEPS)
    for step in range(0, 301, 50):
        policy.update(step, losses(step))
    before = policy.ratio
    decision = policy.update(350, losses(350) | {"law": math.nan})
    assert decision.ratio == before
    assert list(decision.explanation.unusable) == ["law"]
    decision = policy.update(400, losses(400))
    assert decision.explanation.ratio_updated
    assert decision.ratio != before


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_ado_keeps_a_ratio_where_nothing_falls(slope: float) -> None:
    policy = ADO(PRIOR, STEPS)
    for step in range(0, STEPS, 50):
        ratio = policy.update(step, dict.fromkeys(PRIOR, 2.0 + slope * step / STEPS)).ratio
        assert sum(ratio.values()) == pytest.approx(1)
        assert min(ratio.values()) > 0


def test_ado_with_more_domains_than_its_smallest_preference_has_room_for() -> None:
    many = {str(i): 1 / 150 for i in range(150)}
    policy = ADO(many, STEPS)
    for step in range(0, 301, 50):
        ratio = policy.update(step, dict.fromkeys(many, loss("web", step))).ratio
    np.testing.assert_allclose(list(ratio.values()), 1 / 150)


def test_ado_takes_a_change_of_its_domains() -> None:
    policy = ADO(PRIOR, STEPS)
    for step in range(0, 301, 50):
        policy.update(step, losses(step))
    shares = {"web": 0.5, "code": 0.3, "poems": 0.2}
    state = json.loads(json.dumps(change_domains(policy.state_dict(), shares)))
    changed = ADO(shares, STEPS)
    changed.load_state_dict(state)
    assert changed.ratio["poems"] == pytest.approx(0.2)
    assert changed.ratio["web"] / changed.ratio["code"] == pytest.approx(
        policy.ratio["web"] / policy.ratio["code"]
    )
    before = changed.ratio
    for step in (350, 400, 450, 500):
        curve = {d: loss("web" if d == "poems" else d, step) for d in shares}
        decision = changed.update(step, curve)
        assert decision.explanation.ratio_updated == (step == 500), "poems has four points then"
    assert decision.ratio != before


def test_ado_forgets_its_own_past_where_it_continues_from_another_phase() -> None:
    used, new = ADO(PRIOR, STEPS), ADO(PRIOR, STEPS)
    for step in range(0, 301, 50):
        used.update(step, losses(step))
    earlier = Equal(PRIOR, STEPS)
    earlier.update(0, losses(0))
    for policy in (used, new):
        policy.continue_from(earlier.state_dict())
    assert used.state_dict() == new.state_dict()
    assert used.ratio == pytest.approx(dict.fromkeys(PRIOR, 1 / 3))


def test_equal_shares_throughout() -> None:
    policy = Equal(PRIOR, STEPS)
    third = dict.fromkeys(PRIOR, pytest.approx(1 / 3))
    assert policy.ratio == third
    assert policy.update(0, losses(0)).ratio == third
    assert policy.update(50, losses(50) | {"web": math.nan}).ratio == third
    state = policy.state_dict()
    policy.continue_from(state | {"ratio": PRIOR})
    assert policy.ratio == PRIOR, "as handed over, until the first evaluation"
    assert policy.update(0, losses(0)).ratio == third


def test_equal_shares_after_a_change_of_domains() -> None:
    shares = {"web": 0.6, "code": 0.2, "law": 0.1, "poems": 0.1}
    policy = Equal(shares, STEPS)
    policy.load_state_dict(change_domains(Equal(PRIOR, STEPS).state_dict(), shares))
    assert policy.update(50, dict.fromkeys(shares, 2.0)).ratio == dict.fromkeys(shares, 0.25)
