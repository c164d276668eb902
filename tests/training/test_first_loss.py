"""The first evaluation of a phase: what a model that reads another tokenizer's ids says there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

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
