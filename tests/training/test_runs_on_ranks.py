"""Complete runs on several ranks, and what is refused before they begin."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from drpruning.common.errors import BadInput
from drpruning.pipeline.run import Run
from drpruning.recipe import parse_recipe
from helpers.small_runs import logged, on_two_ranks, run, variant


@pytest.mark.slow
def test_two_ranks_equal_one(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    one = run(variant(recipe_values, "one"), "prune", "pretrain", "evaluate")
    values = variant(recipe_values, "two")
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    on_two_ranks("run", recipe)
    two = Path(values["output"])
    for first, second in zip(logged(one), logged(two), strict=True):
        if first["kind"] == "eval":
            assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
            assert first["ratio"] == pytest.approx(second["ratio"], abs=1e-3)
    assert (one / "prune" / "plan.json").read_text() == (two / "prune" / "plan.json").read_text()
    for name, difference in {"source": 1e-6, "model": 1e-4}.items():
        first, second = (
            json.loads((folder / "evaluation" / f"{name}.json").read_text())
            for folder in (one, two)
        )
        assert first["parameters"] == second["parameters"]
        assert first["loss"] == pytest.approx(second["loss"], abs=difference)


@pytest.mark.parametrize(
    ("phase", "change", "message"),
    [
        (
            "pretrain",
            {"global_batch": 7},
            r"^pretrain\.global_batch: 7 blocks .* 2 ranks; .* of 2$",
        ),
        (
            "prune",
            {"global_batch": 6, "mask_samples": 3},
            r"^prune\.mask_samples: .* divisor of 2$",
        ),
    ],
)
def test_batch_that_ranks_cannot_share_is_refused_before_anything_is_done(
    recipe_values: dict[str, Any], phase: str, change: dict[str, int], message: str
) -> None:
    recipe_values[phase].update(change)
    this = Run(parse_recipe(recipe_values))
    this.accelerator = SimpleNamespace(num_processes=2, is_main_process=False)
    with pytest.raises(BadInput, match=message):
        this.run(["prepare", "prune", "pretrain"])
    assert "data" not in vars(this)
    this.files.result(phase).mkdir(parents=True)
    this.run([phase])  # is done already


def test_rank_that_does_not_see_the_run_folder_says_so(recipe_values: dict[str, Any]) -> None:
    this = Run(parse_recipe(recipe_values))
    this.accelerator = SimpleNamespace(
        is_main_process=False, process_index=9, wait_for_everyone=lambda: None
    )
    message = rf"output: rank 9 on .+ does not see {this.folder}, .* that all hosts share"
    with pytest.raises(BadInput, match=message), this.session("test"):
        raise AssertionError("it must not begin")
    this.folder.mkdir()
    (this.folder / ".lock").touch()
    with this.session("test") as same:
        assert same is this
