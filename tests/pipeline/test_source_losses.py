"""The losses of the model that is pruned as reference losses: of all phases and targets."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from drpruning.pipeline.run import Run
from drpruning.pipeline.targets import run_recipe
from drpruning.recipe import parse_recipe
from drpruning.runs.policy import phase_policy
from drpruning.runs.replay import replay_run
from helpers.small_runs import drprune, evaluations, run, write

LARGE = {"num_layers": 3, "hidden_size": 24, "intermediate_size": 32, "num_heads": 4}
SMALL = {"num_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
MASKS = 5e-3  # nats by which masks a little below one change a loss


def source_loss(folder: Path) -> dict[str, float]:
    saved = json.loads((folder / "reference_loss.json").read_text())
    assert saved["of_source"] is True
    losses: dict[str, float] = saved["reference_loss"]
    return losses


def origins(record: dict[str, Any]) -> set[str]:
    return set(record["explanation"]["reference_origin"].values())


@pytest.fixture
def short(recipe_values: dict[str, Any]) -> dict[str, Any]:
    recipe_values["prune"].update(steps=4)
    recipe_values["pretrain"].update(steps=4)
    return recipe_values


@pytest.mark.parametrize("policy", ["drpruning", "sheared", "naive_dro"])
@pytest.mark.parametrize("handover", ["fresh", "continue"])
def test_recovery_is_compared_with_the_model_that_was_pruned(
    short: dict[str, Any], policy: str, handover: str
) -> None:
    short["scheduling"] = {"policy": policy, "handover": handover}
    if policy == "naive_dro":
        short["scheduling"]["reference_loss"] = "source"
    folder = run(short, "prune", "pretrain", "evaluate")
    source = json.loads((folder / "evaluation" / "source.json").read_text())["loss"]
    assert source_loss(folder) == source
    pruning, recovery = evaluations(folder, "prune"), evaluations(folder, "pretrain")
    assert all(record["reference_loss"] == pruning[0]["loss"] for record in pruning)
    assert pruning[0]["loss"] == pytest.approx(source, abs=MASKS)
    assert all(record["reference_loss"] == source for record in recovery)
    assert all(origins(record) == {"source"} for record in pruning + recovery)
    assert all(record["forecast"] is None for record in pruning + recovery)
    before = pruning[-1]["reference_ratio"]
    if handover == "fresh":
        before = {name: domain["share"] for name, domain in short["data"]["domains"].items()}
    if policy == "naive_dro":  # its reference ratio never moves
        assert recovery[0]["reference_ratio"] == pytest.approx(before)
    for curves in replay_run(folder).curves():
        assert all(row.difference == 0 for row in curves.rows())


def test_the_first_ratio_in_pruning_is_not_steered_by_what_masks_change(
    short: dict[str, Any],
) -> None:
    first = evaluations(run(short, "prune"), "prune")[0]
    assert set(first["excess"].values()) == {0.0}
    assert first["ratio"] == pytest.approx(first["reference_ratio"])


def test_a_pruning_that_is_finished_hands_over_although_its_file_is_gone(
    short: dict[str, Any],
) -> None:
    folder = run(short, "prune")
    before = source_loss(folder)
    (folder / "reference_loss.json").unlink()
    run(short, "pretrain")
    assert source_loss(folder) == before
    assert evaluations(folder, "pretrain")[0]["reference_loss"] == before


def test_forecasts_replace_the_source_where_the_recipe_says_so(
    recipe_values: dict[str, Any],
) -> None:
    recipe_values["scheduling"] = {"forecast": "replace", "forecast_start": 0.5, "min_quality": 0.0}
    folder = run(recipe_values, "prune", "pretrain")
    recovery = evaluations(folder, "pretrain")
    assert recovery[0]["reference_loss"] == source_loss(folder)
    assert recovery[0]["forecast"] is None
    assert recovery[-1]["forecast"] is not None
    assert "forecast" in origins(recovery[-1])


@pytest.mark.parametrize("scheduling", [{"reference_loss": "none"}, {"reference": "paper"}])
def test_no_model_is_measured_where_there_is_to_be_no_reference_loss(
    short: dict[str, Any], scheduling: dict[str, Any]
) -> None:
    short["scheduling"] = scheduling
    folder = run(short, "prune")
    assert not (folder / "reference_loss.json").exists()
    assert not (folder / "evaluation").exists()
    assert all(record["reference_loss"] is None for record in evaluations(folder, "prune"))


def test_a_domain_that_is_only_evaluated_has_the_loss_of_the_source_in_the_log(
    short: dict[str, Any],
) -> None:
    domains = short["data"]["domains"]
    domains["numbers"]["share"], domains["animals"]["share"] = 0.7, 0.0
    folder = run(short, "prune", "pretrain")
    expected = source_loss(folder)["animals"]
    for phase in ("prune", "pretrain"):
        for record in evaluations(folder, phase):
            assert record["reference_loss"]["animals"] == expected
            assert "animals" not in record["data"]


def test_every_target_of_a_chain_is_compared_with_the_first_model(
    short: dict[str, Any],
) -> None:
    del short["model"]["target"]
    short["model"]["targets"] = {"large": LARGE, "small": SMALL}
    run_recipe(parse_recipe(short), "run", ["prepare", "prune", "pretrain"])
    large, small = (Path(short["output"]) / name for name in ("large", "small"))
    original = source_loss(large)
    assert source_loss(small) == original
    assert evaluations(small, "prune")[0]["reference_loss"] == original
    assert evaluations(small, "pretrain")[-1]["reference_loss"] == original
    assert origins(evaluations(small, "prune")[0]) == {"source"}
    # A run of the chain whose file is gone still knows what the chain began with.
    (small / "reference_loss.json").unlink()
    again = Run.open(small)
    with again.session(None):
        again.measure_reference_losses()
    assert source_loss(small) == original
    assert not (small / "evaluation").exists()


def test_a_target_of_a_chain_replays_with_the_first_models_losses_wherever_it_lies(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del short["model"]["target"]
    short["model"]["targets"] = {"large": LARGE, "small": SMALL}
    run_recipe(parse_recipe(short), "run", ["prepare", "prune"])
    moved = tmp_path / "moved" / "chain"
    moved.parent.mkdir()
    Path(short["output"]).rename(moved)
    (moved / "large" / "pruned").rename(tmp_path / "elsewhere")
    for place in (moved / "small", Path("chain") / "small"):
        monkeypatch.chdir(moved.parent)
        (phase,) = replay_run(place).phases
        assert phase.is_identical
        assert phase.points[0].decision.reference_loss == source_loss(place)


def test_a_target_of_a_chain_that_did_not_need_them_replays_with_the_first_models_losses(
    short: dict[str, Any],
) -> None:
    del short["model"]["target"]
    short["model"]["targets"] = {"large": LARGE, "small": SMALL}
    short["scheduling"] = {"policy": "constant"}
    run_recipe(parse_recipe(short), "run", ["prepare", "prune", "evaluate"])
    large, small = (Path(short["output"]) / name for name in ("large", "small"))
    assert not (small / "reference_loss.json").exists()
    original = json.loads((large / "evaluation" / "source.json").read_text())["loss"]
    assert json.loads((small / "evaluation" / "source.json").read_text())["loss"] != original
    (phase,) = replay_run(small, "drpruning", ["reference_loss=source"]).phases
    assert phase.points[0].decision.reference_loss == original


def test_plan_and_run_say_which_reference_losses_each_phase_goes_by(
    short: dict[str, Any], tmp_path: Path
) -> None:
    recipe = write(short, tmp_path / "r.yaml")
    line = "reference losses: the losses of the model that is pruned (reference_loss: auto, as a"
    text = drprune("plan", recipe)
    assert f"prune: {line}" in text
    assert f"pretrain: {line}" in text
    both = (
        "also forecasts of the losses at the end of prune if the rest of it gave all domains the "
    )
    assert f"{both}same share; then both count" in " ".join(text.split())
    never = drprune("plan", recipe, "--set", "scheduling.forecast=never")
    assert f"prune: {line}" in never
    assert "forecasts" not in never
    assert "reference losses" not in drprune("plan", recipe, "--set", "scheduling.policy=constant")
    paper = drprune("plan", recipe, "--set", "scheduling.reference=paper")
    assert "prune: reference losses: none; from step 1 on, forecasts" in paper
    assert f"prune: {line}" in drprune("prune", recipe)


def test_what_is_missing_is_named(short: dict[str, Any]) -> None:
    recipe = parse_recipe(short)
    assert recipe.pretrain is not None
    with pytest.raises(ValueError, match="the model that is pruned: not measured yet"):
        phase_policy(recipe, recipe.pretrain, 1.0)
    folder = Path(short["output"])
    folder.mkdir()
    named = copy.deepcopy(short)
    (folder / "reference_loss.json").write_text("{}")
    with pytest.raises(ValueError, match="is not what this program writes"):
        phase_policy(parse_recipe(named), recipe.pretrain, 1.0)
