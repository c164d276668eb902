"""Losses that rise at first, as learning rates warm up or masks close: forecasts begin later."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.scheduling import DRPruning, change_domains
from drpruning.scheduling.history import LossHistory

RATIO = {"a": 0.5, "b": 0.3, "c": 0.2}
STEPS, EVERY, TOP = 400, 20, 3
Losses = dict[str, float | None]


def healed(step: int) -> dict[str, float]:
    """Losses after the top, by a law in the steps since then."""
    since = step - TOP * EVERY
    return {n: 2 + i + 1.5 * (since + 15) ** -0.4 for i, n in enumerate(RATIO)}


def rising(step: int) -> dict[str, float]:
    """Below the top at first, where the model was still complete."""
    top = healed(TOP * EVERY)
    missing = (TOP * EVERY - step) / (TOP * EVERY)
    return {n: v - 0.3 * missing for n, v in top.items()} if missing > 0 else healed(step)


def healed_from_the_start(step: int) -> dict[str, float]:
    return healed(step + TOP * EVERY)


def decisions(losses: Any, **options: Any) -> list[Any]:
    policy = DRPruning(RATIO, STEPS, **options)
    return [policy.update(step, losses(step)) for step in range(0, STEPS + 1, EVERY)]


def test_a_curve_that_rises_at_first_is_forecast_as_if_it_began_at_its_top() -> None:
    later = decisions(lambda step: dict(rising(step)) if step >= TOP * EVERY else {})
    for rose, began in zip(decisions(rising)[TOP:], later[TOP:], strict=True):
        assert rose.forecast == began.forecast
        assert rose.ratio == began.ratio
        assert rose.explanation.no_forecast == began.explanation.no_forecast
    since = rose.explanation.forecast_since
    assert set(since) == set(RATIO)
    assert all(step >= TOP * EVERY for step in since.values())
    assert rose.forecast["a"] < healed(STEPS)["a"] + 1e-9


def test_too_few_points_since_the_top_are_counted_as_that() -> None:
    first = next(d for d in decisions(rising, forecast_start=0.2) if d.explanation.no_forecast)
    points = 1 + int(0.2 * STEPS / EVERY) - TOP
    assert set(first.explanation.no_forecast.values()) == {
        f"it has {points} of the 4 points that a forecast needs"
    }


def test_forecasts_over_steps_do_not_look_for_the_top() -> None:
    """The paper's rule uses every loss after step 0."""
    counted = [
        [d.explanation.no_forecast for d in decisions(losses, forecast_at=at, forecast_start=0.1)]
        for at in ("present", "equal")
        for losses in (rising, healed_from_the_start)
    ]
    assert counted[0] == counted[1]
    assert counted[2] != counted[3]


@pytest.mark.parametrize("loss", [2.5, 0.0])
def test_flat_losses_have_no_top_and_give_a_ratio(loss: float) -> None:
    found = decisions(lambda _: dict.fromkeys(RATIO, loss))
    assert found[-1].forecast == pytest.approx(dict.fromkeys(RATIO, loss), abs=1e-6)
    assert found[-1].ratio == pytest.approx(RATIO, abs=1e-3)


def test_a_run_in_which_nothing_was_measured_keeps_its_ratio() -> None:
    for decision in decisions(lambda _: dict.fromkeys(RATIO)):
        assert decision.ratio == RATIO
        assert decision.forecast is None


def test_a_domain_that_comes_later_leaves_the_curves_of_the_others() -> None:
    """Its first loss must not count as the top of all: they would lose their points before it."""
    shares = {"a": 0.4, "b": 0.3, "c": 0.2, "new": 0.1}
    old = DRPruning(RATIO, STEPS)
    for step in range(0, STEPS // 2, EVERY):
        old.update(step, healed(step + TOP * EVERY))
    policy = DRPruning(shares, STEPS)
    policy.load_state_dict(change_domains(old.state_dict(), shares))
    decision = policy.update(STEPS // 2, healed(STEPS // 2 + TOP * EVERY) | {"new": 4.0})
    assert set(decision.explanation.no_forecast) == {"new"}
    assert decision.explanation.forecast_since == {}


# The evaluation with the largest mean loss.


def top(rows: np.ndarray) -> int:
    history = LossHistory([f"d{i}" for i in range(len(rows))], 1.0)
    for step, losses in enumerate(rows.T):
        history.record(step, losses, None, np.zeros(len(rows)))
    return history.peak


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 5), m=st.integers(1, 12))
def test_it_is_that_of_the_mean_loss(seed: int, n: int, m: int) -> None:
    losses = np.random.default_rng(seed).normal(size=(n, m))
    assert top(losses) == int(np.argmax(losses.mean(axis=0)))


@given(seed=st.integers(0, 2**32 - 1), at=st.integers(1, 8))
def test_one_value_that_is_missing_does_not_decide(seed: int, at: int) -> None:
    """Not even that of the domain with by far the largest loss."""
    rng = np.random.default_rng(seed)
    losses = np.sort(rng.uniform(1, 2, size=(3, 10)), axis=1)[:, ::-1] + [[0.0], [5.0], [50.0]]
    losses[rng.integers(3), at] = math.nan
    assert top(losses) == 0


@pytest.mark.parametrize("m", [1, 5])
def test_without_any_loss_it_is_the_first(m: int) -> None:
    assert top(np.full((2, m), math.nan)) == 0
    assert top(np.ones((2, m))) == 0
