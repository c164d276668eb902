"""`drprune plan --time`: the estimate adds up, and nothing but it remains."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.common.errors import Interrupted
from drpruning.pipeline import timing
from drpruning.pipeline.targets import plan_recipe
from drpruning.pipeline.timing import Part, PhaseTimes, time_recipe
from drpruning.recipe import parse_recipe
from drpruning.training import phases
from helpers.small_runs import evaluations, only_pretraining, run


def found(values: dict[str, Any]) -> dict[tuple[str, str], Part]:
    parts = time_recipe(plan_recipe(parse_recipe(values)), 2)
    return {(part.stage, part.what): part for part in parts}


def test_each_stage_is_timed_and_nothing_remains(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe_values["prune"] |= {"initial_masks": "taylor", "stop": {"evaluations": 1}}
    recipe_values["data"]["domains"]["animals"]["on_exhausted"] = "stop"
    parts = found(recipe_values)
    assert list(tmp_path.iterdir()) == []
    assert {stage for stage, _ in parts} == {"prune", "pretrain", "evaluate"}
    assert [what for stage, what in parts if stage == "evaluate"] == ["source", "pruned", "model"]
    assert parts["prune", "steps"].count == 20 + 8
    assert parts["pretrain", "steps"].count == 12
    assert parts["prune", "checkpoints"].count == 1 + 20 // 5
    assert all(part.each > 0 for (_, what), part in parts.items() if what != "checkpoints")
    assert parts["prune", "steps"].seconds == 28 * parts["prune", "steps"].each


def test_evaluations_are_as_many_as_in_the_run(recipe_values: dict[str, Any]) -> None:
    values = only_pretraining(recipe_values)
    parts = found(values)
    assert not any(what == "pruned" for _, what in parts)
    folder = run(values, "prepare", "pretrain")
    assert parts["pretrain", "evaluations"].count == len(evaluations(folder, "pretrain"))
    before = sorted(folder.rglob("*"))
    found(values)
    assert sorted(folder.rglob("*")) == before


def test_parts_follow_from_what_was_measured(recipe_values: dict[str, Any]) -> None:
    plan = plan_recipe(parse_recipe(recipe_values))
    slow = PhaseTimes(load=10, step=2, evaluated_block=0.5, checkpoint=3, result=4)
    fast = PhaseTimes(load=1, step=1, evaluated_block=0.25, checkpoint=1, result=2)
    parts = timing._parts(plan.recipe, plan.plans[""], {"prune": slow, "pretrain": fast})
    seconds = {(part.stage, part.what): part.seconds for part in parts}
    blocks = 6 * 3
    assert seconds == {
        ("prune", "steps"): 20 * 2,
        ("prune", "evaluations"): 11 * blocks * 0.5,
        ("prune", "checkpoints"): 5 * 3,
        ("prune", "load and export"): 14,
        ("pretrain", "steps"): 12,
        ("pretrain", "evaluations"): 7 * blocks * 0.25,
        ("pretrain", "checkpoints"): 3,
        ("pretrain", "load and export"): 3,
        ("evaluate", "source"): 10 + blocks * 0.5,
        ("evaluate", "pruned"): 1 + blocks * 0.25,
        ("evaluate", "model"): 1 + blocks * 0.25,
    }


def test_the_command_prints_the_estimate_and_no_losses_of_random_tokens(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values))
    without = CliRunner().invoke(app, ["plan", str(file)])
    result = CliRunner().invoke(app, ["plan", str(file), "--time", "--time-steps", "1"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(without.output)
    text = result.output.removeprefix(without.output)
    for words in ("prune", "pretrain", "load and export", "total", "1 step of each", "not counted"):
        assert words in text
    assert "warning" not in text
    assert "numbers" not in text
    assert list(tmp_path.iterdir()) == [file]


def test_interrupted_it_leaves_nothing(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise Interrupted

    monkeypatch.setattr(phases, "pretrain", interrupted)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values))
    result = CliRunner().invoke(app, ["plan", str(file), "--time"])
    assert result.exit_code == 130
    assert result.stderr == "drprune: interrupted\n"
    assert list(tmp_path.iterdir()) == [file]
    assert logging.root.manager.disable == logging.NOTSET
