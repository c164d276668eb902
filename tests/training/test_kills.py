"""The real command, killed at any moment and started again, ends as if nothing had happened."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_command import MOMENTS
from safetensors.torch import load_file

from drpruning.common.errors import BadInput
from drpruning.pipeline.run import Run
from drpruning.recipe import parse_recipe
from helpers.commands import KILLED_COMMAND, killed, plain
from helpers.small_runs import logged, renamed, run, torchrun, write

RESULTS = ("prune/plan.json", "prune/plans.jsonl", "prune/schedule.json")
WEIGHTS = ("prune/masks.safetensors", "pruned/model.safetensors", "model/model.safetensors")
MOST = {"files": 60, "export": 2, "exported": 2, "reporting": 1}
"""How often a moment comes in one start at most, where that is not thrice."""


def assert_equal_to_the_bit(folder: Path, whole: Path) -> None:
    assert logged(folder) == logged(whole)
    for name in RESULTS:
        assert (folder / name).read_text() == (whole / name).read_text(), name
    for name in WEIGHTS:
        one, two = load_file(whole / name), load_file(folder / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name
    for file in (whole / "data").rglob("*.bin"):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
    assert not list((folder / "checkpoints").iterdir())
    assert not list(folder.glob(".*.partial"))


@pytest.mark.slow
def test_killed_run_ends_as_if_nothing_had_happened(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(renamed(recipe_values, "whole"), "prune", "pretrain")
    values = renamed(recipe_values, "killed")
    recipe = write(values, tmp_path / "killed.yaml")
    assert killed(recipe, "manifest", 3).returncode == -9  # the checkpoint at step 15 of pruning
    asked = killed(recipe, "step", 8, "SIGTERM")  # step 18
    assert asked.returncode == 130, asked.stderr
    assert "interrupted; saved" in asked.stderr
    assert (Path(values["output"]) / "checkpoints" / "prune-00000018").is_dir()
    done = plain(recipe)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 18" in done.stdout
    assert_equal_to_the_bit(Path(values["output"]), whole)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_at_random_moments(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    whole = run(renamed(recipe_values, "whole"), "prune", "pretrain")
    rng = random.Random(5)
    moments = [*MOMENTS, *["files"] * (20 - len(MOMENTS))]
    rng.shuffle(moments)
    moments.sort(key=lambda moment: not moment.startswith("prepar"))
    kills = runs = 0
    while moments:
        runs += 1
        values = renamed(recipe_values, f"killed{runs}")
        recipe = write(values, tmp_path / "killed.yaml")
        while True:
            moment = moments[0] if moments else "files"
            count = rng.randint(1, MOST.get(moment, 3))
            done = killed(recipe, moment, count) if moments else plain(recipe)
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            kills += 1
            moments.pop(0)
        assert_equal_to_the_bit(Path(values["output"]), whole)
    assert kills == 20


@pytest.mark.slow
def test_other_numbers_of_ranks_go_on_with_the_same_data(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(renamed(recipe_values, "whole"), "prune", "pretrain")
    values = renamed(recipe_values, "ranks")
    recipe = write(values, tmp_path / "ranks.yaml")
    assert killed(recipe, "step", 13).returncode == -9
    both = torchrun(2, KILLED_COMMAND, "step", "17", "SIGKILL", "run", recipe)
    assert both.returncode != 0
    assert "resuming from step 10" in both.stdout, both.stderr
    folder = Path(values["output"])
    assert (folder / "checkpoints" / "pretrain-00000005").is_dir(), both.stderr
    run(values, "prune", "pretrain")
    for one, other in zip(logged(whole), logged(folder), strict=True):
        assert one["kind"] == other["kind"]
        if one["kind"] == "eval":
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
            assert one["epochs"] == pytest.approx(other["epochs"], abs=1e-3)
            assert one["realised_share"] == other["realised_share"]
    plans = [(place / "prune" / "plan.json").read_text() for place in (whole, folder)]
    assert plans[0] == plans[1]


def test_worker_that_outlives_a_killed_process_does_not_hold_its_folder(
    recipe_values: dict[str, Any],
) -> None:
    this = Run(parse_recipe(recipe_values))
    this.folder.mkdir()
    read, write_end = os.pipe()
    if (first := os.fork()) == 0:
        with this._lock():
            if os.fork() == 0:
                os.close(write_end)
                os.read(read, 1)  # ends with the test
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(first, 0)
    refused = pytest.raises(BadInput, match="another process is working")
    with this._lock(), refused, this._lock():
        pass
    os.close(write_end)
    os.close(read)
