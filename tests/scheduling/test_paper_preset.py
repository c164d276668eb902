"""`reference="paper"`: the paper's rule, in one word."""

import json
from pathlib import Path

import pytest

from drpruning.common.errors import BadInput
from drpruning.scheduling import (
    DEFAULT_SETTINGS,
    PAPER_SETTINGS,
    DRPruning,
    make_policy,
    policy_settings,
)

RECORDED = json.loads((Path(__file__).parent / "recorded" / "paper.json").read_bytes())
"""Decisions of version 0.3 (before counterfactual forecasts) with the paper's settings."""
CASES = {case["name"]: case for case in RECORDED["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_it_decides_as_before_there_were_other_settings(name: str) -> None:
    """On the machine that recorded them they agree to the bit; elsewhere rounding may differ."""
    ratio, case = RECORDED["ratio"], CASES[name]
    policy = make_policy(
        "drpruning",
        ratio,
        case["total_steps"],
        case["final_params"],
        reference="paper",
        **case["options"],
    )
    assert len(case["evaluations"]) == len(case["decisions"]) == 21
    for (step, losses, params), expected in zip(
        case["evaluations"], case["decisions"], strict=True
    ):
        decision = policy.update(step, dict(zip(ratio, losses, strict=True)), params)
        found = (
            decision.ratio,
            decision.reference_ratio,
            decision.reference_loss,
            decision.forecast,
        )
        for value, recorded in zip(found, expected, strict=True):
            known = zip(ratio, recorded or [], strict=recorded is not None)
            named = {domain: number for domain, number in known if number is not None}
            assert (value or {}) == pytest.approx(named, rel=1e-7)


def test_a_setting_that_is_given_wins_over_the_preset() -> None:
    ratio = {"a": 0.5, "b": 0.5}
    explicit = DRPruning(ratio, 100, **(PAPER_SETTINGS | {"rho": 0.02, "floor": 0.1}))
    preset = make_policy("drpruning", ratio, 100, reference="paper", rho=0.02, floor=0.1)
    for step in range(0, 101, 10):
        losses = {"a": 2 + 1 / (step + 9), "b": 1 + 3 / (step + 9)}
        decision = preset.update(step, losses)
        assert decision == explicit.update(step, losses)
    assert decision.explanation.rho == 0.02
    assert decision.explanation.divergence == pytest.approx(0.02)


def test_both_tables_name_every_setting() -> None:
    assert set(DEFAULT_SETTINGS) == set(PAPER_SETTINGS)
    assert {*DEFAULT_SETTINGS, "reference_loss", "reference"} == set(policy_settings("drpruning"))
    assert DRPruning({"a": 1.0}, 10, **DEFAULT_SETTINGS).state_dict() == (
        DRPruning({"a": 1.0}, 10).state_dict()
    )


def test_no_other_preset_and_no_other_policy_has_one() -> None:
    with pytest.raises(BadInput, match="reference must be paper, or absent, not 'theirs'"):
        make_policy("drpruning", {"a": 1.0}, 10, reference="theirs")
    with pytest.raises(BadInput, match="naive_dro has no setting reference"):
        make_policy("naive_dro", {"a": 1.0}, 10, reference="paper")
