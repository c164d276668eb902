"""Shares that follow from the size of the text, beside shares that are given."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.pipeline.run import Run
from drpruning.pipeline.targets import plan_recipe, run_recipe
from drpruning.recipe import Recipe, load_recipe, parse_recipe
from helpers.small_runs import drprune, evaluations, only_pretraining, run, write


def two_open(values: dict[str, Any], smoothing: float = 0.5) -> dict[str, Any]:
    """The recipe with 0.2 for numbers, and what that leaves by size; animals are few."""
    data = values["data"]
    data["smoothing"], data["domains"]["numbers"]["share"] = smoothing, 0.2
    for name in ("colours", "animals"):
        del data["domains"][name]["share"]
    lines = (Path(data["root"]) / "animals.jsonl").read_text().splitlines()
    few = Path(values["output"]).with_name("few.jsonl")
    few.write_text("\n".join(lines[:40]) + "\n")
    data["domains"]["animals"]["source"] = str(few)
    return values


def shares(recipe: Recipe) -> dict[str, float]:
    return dict(recipe.initial_ratio)


@given(
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 10**14), min_size=1),
    smoothing=st.floats(0, 1),
    fixed=st.floats(0, 0.9),
)
def test_what_is_left_is_divided_by_smoothed_size(
    sizes: dict[str, int], smoothing: float, fixed: float
) -> None:
    domains: dict[str, Any] = {name: {"source": name} for name in sizes}
    domains["fixed"] = {"source": "f", "share": fixed}
    values = {
        "model": {"source": "m"},
        "data": {"smoothing": smoothing, "domains": domains},
        "pretrain": {"steps": 10},
        "output": "out",
    }
    recipe = parse_recipe(values)
    assert recipe.data.unsized == list(sizes)
    with pytest.raises(ValueError, match="follows from the size of its text"):
        assert recipe.initial_ratio
    found = recipe.with_sizes(sizes)
    ratio = {name: found.data.domains[name].share or 0.0 for name in domains}
    assert sum(ratio.values()) == pytest.approx(1)
    assert ratio["fixed"] == fixed
    one = next(iter(sizes))
    for name, size in sizes.items():
        assert ratio[name] / ratio[one] == pytest.approx((size / sizes[one]) ** smoothing)
    assert found.data.smoothing is None
    assert parse_recipe(found.model_dump(mode="json")) == found


def test_a_run_has_the_shares_of_what_was_prepared(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    values = two_open(only_pretraining(recipe_values))
    file = write(values, tmp_path / "r.yaml")
    text = drprune("plan", file)
    assert "warning: data.smoothing: the size of the text is only estimated" in text
    drprune("pretrain", file)
    folder = Path(values["output"])
    manifest = json.loads((folder / "data" / "manifest.json").read_text())["domains"]
    few, many = (manifest[name]["train_blocks"] for name in ("animals", "colours"))
    assert few < many
    saved = load_recipe(folder / "recipe.yaml")
    weight = (few / many) ** 0.5
    expected = {
        "numbers": 0.2,
        "colours": 0.8 / (1 + weight),
        "animals": 0.8 * weight / (1 + weight),
    }
    assert shares(saved) == pytest.approx(expected)
    assert saved.data.smoothing is None
    assert evaluations(folder, "pretrain")[0]["ratio"] == shares(saved)
    # The recipe as it was written and the one in the folder stand for the same run.
    assert "warning: data.smoothing" not in drprune("plan", file)
    assert "done already" in drprune("pretrain", file)
    assert "done already" in drprune("pretrain", folder / "recipe.yaml")


def test_a_text_whose_size_cannot_be_estimated_counts_once_it_is_prepared(
    recipe_values: dict[str, Any],
) -> None:
    values = two_open(only_pretraining(recipe_values))
    values["data"]["domains"]["animals"]["where"] = {"text": "nothing like it"}
    plan = plan_recipe(parse_recipe(values)).plans[""]
    assert shares(plan.recipe) == pytest.approx({"numbers": 0.2, "colours": 0.4, "animals": 0.4})
    assert any("that of animals not at all" in warning for warning in plan.warnings)
    del values["data"]["domains"]["animals"]["where"]
    folder = run(values, "pretrain")
    assert shares(Run.open(folder).recipe)["animals"] < 0.4


def test_all_targets_have_the_same_shares(recipe_values: dict[str, Any]) -> None:
    values = two_open(recipe_values)
    target = values["model"].pop("target")
    values["model"]["targets"] = {"large": {**target, "num_layers": 3}, "small": target}
    values["prune"]["steps"] = 2
    values["prune"]["evaluate_every"] = 2
    del values["pretrain"]
    run_recipe(parse_recipe(values), "prune", ["prepare", "prune"])
    folder = Path(values["output"])
    saved = [
        shares(load_recipe(p / "recipe.yaml")) for p in (folder, folder / "large", folder / "small")
    ]
    assert saved[0] == saved[1] == saved[2]
    assert saved[0]["animals"] < saved[0]["colours"]
    run_recipe(parse_recipe(values), "prune", ["prune"])
