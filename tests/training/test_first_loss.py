"""The first evaluation of a phase: what a model that reads another tokenizer's ids says there."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from drpruning.training.messages import first_loss_text
from helpers.small_runs import logged, run


def confident(model: Path, place: Path) -> Path:
    """A model with large logits, which are as wrong as those for another tokenizer's ids."""
    shutil.copytree(model, place)
    weights = load_file(place / "model.safetensors")
    weights["lm_head.weight"] *= 200
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return place


@pytest.mark.parametrize("phase", ["prune", "pretrain"])
@pytest.mark.parametrize("damaged", [False, True])
def test_it_is_warned_of_once_in_the_log_and_to_the_reader(
    recipe_values: dict[str, Any],
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    phase: str,
    *,
    damaged: bool,
) -> None:
    del recipe_values[{"prune": "pretrain", "pretrain": "prune"}[phase]]
    if phase == "pretrain":
        del recipe_values["model"]["target"]
    recipe_values[phase]["steps"] = 4
    if damaged:
        recipe_values["model"]["source"] = str(confident(model_folder, tmp_path / "model"))
    lines = logged(run(recipe_values, "prepare", phase))
    found = [line for line in lines if "before any training" in line.get("message", "")]
    assert [(line["kind"], line["step"]) for line in found] == [("warning", 0)] * damaged
    assert caplog.text.count("before any training") == damaged


def test_a_model_that_was_never_trained_is_not_taken_for_a_damaged_one() -> None:
    """It stands a little above equal shares: 0.8 nats at a hidden size of 4,096."""
    equal = math.log(32_000)
    assert first_loss_text({"a": equal + 0.8, "b": equal + 0.8}, 32_000) == []
    assert first_loss_text({"a": equal + 0.2, "b": math.nan}, 32_000) == []
    assert len(first_loss_text({"a": equal + 1.2, "b": math.nan}, 32_000)) == 1
    assert first_loss_text({"a": math.nan}, 32_000) == []
