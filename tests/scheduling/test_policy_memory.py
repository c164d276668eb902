"""What DRPruning remembers between evaluations, between processes and between phases."""

import json
from typing import Any

import pytest

from drpruning.scheduling import PAPER_SETTINGS, DRPruning

STEPS = 1000
PAIR = {"good": 0.5, "bad": 0.5}


def steered(*args: Any, **options: Any) -> DRPruning:
    """DRPruning as the paper has it, but with forecasts that must be good."""
    return DRPruning(*args, **(PAPER_SETTINGS | {"min_quality": 0.5} | options))


def good(step: int) -> float:
    return 2 + 0.1 * (max(step, 1) / STEPS) ** -0.4


def falling_late(step: int) -> dict[str, float]:
    """`bad` rises at first, so that no forecast of it can be trusted, and then falls further."""
    return {"good": good(step), "bad": 2 + step / STEPS if step <= 400 else 1.9 - step / 5000}


def test_a_smallest_loss_that_stands_in_for_a_forecast_follows_the_losses_after_resuming() -> None:
    whole, first = (steered(PAIR, STEPS, floor=0.1) for _ in range(2))
    expected = [whole.update(step, falling_late(step)) for step in range(50, 751, 50)]
    assert expected[7].explanation.refused == {"bad": "its losses rise"}
    stand_ins = [decision.reference_loss["bad"] for decision in expected[7:]]
    assert stand_ins[0] == falling_late(50)["bad"]
    assert min(stand_ins) < stand_ins[0], "it follows the losses down"
    for step in range(50, 401, 50):
        first.update(step, falling_late(step))
    resumed = steered(PAIR, STEPS, floor=0.1)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [resumed.update(step, falling_late(step)) for step in range(450, 751, 50)] == expected[
        8:
    ]


def test_a_policy_that_continues_from_another_forgets_its_own_past() -> None:
    used, fresh = (steered(PAIR, STEPS, floor=0.1) for _ in range(2))
    for step in range(0, 501, 50):
        used.update(step, {"good": good(step) + 3, "bad": good(step) + 4})
    earlier = steered(PAIR, STEPS, floor=0.1, reference_loss=dict.fromkeys(PAIR, 1.0))
    earlier.update(0, {"good": 2.5, "bad": 2.0})
    for policy in (used, fresh):
        policy.continue_from(earlier.state_dict())
    assert used.state_dict() == fresh.state_dict()
    for step in range(0, 601, 50):
        losses = {"good": good(step), "bad": 1.1 * good(step)}
        assert used.update(step, losses) == fresh.update(step, losses)


@pytest.mark.parametrize(("params", "counts"), [(1.04e9, True), (1.06e9, False)])
def test_losses_of_a_model_within_five_percent_of_the_final_size_count(
    params: float, counts: bool
) -> None:
    """Expected sizes hover about the target; there the smallest loss seen bounds the forecast."""
    policy = steered(PAIR, STEPS, 1e9, floor=0.1, forecast_start=0.0, min_quality=0.0)
    low = 0.5
    policy.update(1, {"good": low, "bad": low}, params)
    for step in range(50, 601, 50):
        decision = policy.update(step, {"good": good(step), "bad": good(step)}, 1.2e9 - step * 2e5)
    assert decision.reference_loss is not None
    assert (decision.reference_loss["good"] <= low) == counts
