"""How a target is given, and several targets from one source in one recipe."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.errors import BadInput, Interrupted
from drpruning.models import inspect as source_model
from drpruning.pipeline.run import STAGES, Run
from drpruning.pipeline.targets import plan_recipe, run_folders, run_recipe
from drpruning.pruning import ModelShape
from drpruning.recipe import load_recipe, parse_recipe
from drpruning.training import phases
from helpers.small_runs import drprune, on_two_ranks, write

SMALL = {"num_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
WHOLE = {**SMALL, "num_kv_heads": 1}
LARGE = {"hidden_size": 24, "intermediate_size": 32}


def planned(values: dict[str, Any], target: Any) -> ModelShape:
    plan = plan_recipe(parse_recipe({**values, "model": {**values["model"], "target": target}}))
    assert plan.problems == []
    shape = plan.plans[""].target
    assert shape is not None
    return shape


def problems(values: dict[str, Any], **model: Any) -> str:
    section = {**values["model"], **model}
    if "targets" in model:
        section.pop("target", None)
    found = plan_recipe(parse_recipe({**values, "model": section})).problems
    assert found
    return "\n".join(found)


def other_model(model_folder: Path, folder: Path, **config: Any) -> Path:
    values = json.loads((model_folder / "config.json").read_text()) | config
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def small_model(model_folder: Path, tmp_path: Path) -> Path:
    return other_model(
        model_folder, tmp_path / "small", num_hidden_layers=2, hidden_size=16,
        intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, vocab_size=7,
    )  # fmt: skip


# One target.


@pytest.mark.parametrize("file", ["", "config.json", "renamed.json"])
def test_target_like_a_model_has_its_dimensions(
    recipe_values: dict[str, Any], small_model: Path, file: str
) -> None:
    shutil.copy(small_model / "config.json", small_model / "renamed.json")
    target = str(small_model / file)
    assert planned(recipe_values, target) == planned(recipe_values, SMALL)
    beside = planned(recipe_values, {"like": target, "num_layers": 3, "num_heads": 4})
    assert beside == planned(recipe_values, {**SMALL, "num_layers": 3, "num_heads": 4})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"head_dim": 16}, ["size 16", "size", "8", "num_heads: 4"]),
        ({"intermediate_size": 96}, ["intermediate_size 96 of 48", "intermediate_size: 48"]),
        ({"hidden_size": 64, "num_hidden_layers": 4}, ["hidden_size 64 of 32", "num_layers: 3"]),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ["bert"]),
    ],
)
def test_target_like_a_model_that_cannot_be_is_refused(
    recipe_values: dict[str, Any], small_model: Path, tmp_path: Path,
    config: dict[str, Any], words: list[str],
) -> None:  # fmt: skip
    folder = other_model(small_model, tmp_path / "odd", **config)
    message = problems(recipe_values, target=str(folder))
    for word in ("model.target", str(folder), *words):
        assert word.lower() in message.lower()


def test_target_like_a_model_that_is_not_there_is_refused(recipe_values: dict[str, Any]) -> None:
    assert "model.target: no/such/model" in problems(recipe_values, target="no/such/model")


@pytest.mark.parametrize("budget", ["12K", 12_000, "12_000", "0.012M", 12e3])
def test_budget_gives_the_first_proposal_and_plan_shows_all(
    recipe_values: dict[str, Any], tmp_path: Path, budget: Any
) -> None:
    shape = planned(recipe_values, {"params": budget})
    assert shape.num_parameters() == pytest.approx(12_000, rel=0.02)
    recipe_values["model"]["target"] = {"params": budget}
    output = drprune("plan", write(recipe_values, tmp_path / "recipe.yaml"))
    assert "taken" in output
    assert "the budget" in output
    assert f"{shape.num_parameters():,}" in output


def test_impossible_budget_is_refused(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    recipe_values["model"]["target"] = {"params": "1B"}
    message = drprune("run", write(recipe_values, tmp_path / "recipe.yaml"), status=2)
    assert "model.target.params" in message
    assert "possible: " in message
    assert not Path(recipe_values["output"]).exists()


def test_chosen_dimensions_stand_whatever_the_search_says_later(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_values["model"]["target"] = {"params": 12_000}
    recipe = parse_recipe(recipe_values)
    run_recipe(recipe, "first", ["prepare"])
    file = Path(recipe.output) / "recipe.yaml"
    written = load_recipe(file)
    target = written.model.target
    assert target is not None
    assert target.is_resolved
    assert len(target.dimensions()) == 5
    before = planned(recipe_values, {"params": 12_000})
    search = source_model.propose_shapes
    monkeypatch.setattr(source_model, "propose_shapes", lambda *a, **k: search(*a, **k)[1:])
    assert planned(recipe_values, {"params": 12_000}) == before
    run_recipe(recipe, "again", ["prepare"])
    run_recipe(load_recipe(file), "from the folder", ["prepare"])
    run_recipe(parse_recipe({**recipe_values, "model": {**recipe_values["model"], "target":
                             target.dimensions()}}), "by hand", ["prepare"])  # fmt: skip
    assert load_recipe(file).model.target is not None
    assert load_recipe(file).model.target.dimensions() == target.dimensions()  # type: ignore[union-attr]
    (Path(recipe.output) / "checkpoints" / "prune-00000002").mkdir(parents=True)
    message = problems(recipe_values, target={"params": 9_000})
    assert "another recipe" in message


# Several targets.


def several(values: dict[str, Any], targets: dict[str, Any], **model: Any) -> dict[str, Any]:
    """The recipe with these targets, and steps for a quick run."""
    values = copy.deepcopy(values)
    del values["model"]["target"]
    values["model"] |= {"targets": targets, **model}
    values["prune"] |= {"steps": 6, "evaluate_every": 3}
    values["pretrain"] |= {"steps": 4, "evaluate_every": 2}
    return values


def test_targets_are_planned_from_the_largest_to_the_smallest(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    values = several(recipe_values, {"small": SMALL, "middle": {"params": 12_000}, "large": LARGE})
    plan = plan_recipe(parse_recipe(values))
    assert plan.problems == []
    runs = list(plan.plans.values())
    sizes = [part.target.num_parameters() for part in runs if part.target is not None]
    assert sizes == sorted(sizes, reverse=True)
    folders = [Path(part.recipe.output) for part in runs]
    assert [folder.name for folder in folders] == ["large", "middle", "small"]
    output = drprune("plan", write(values, tmp_path / "recipe.yaml"))
    for name in ("target large: from the source", "target middle", "target small", "taken"):
        assert name in output
    assert not Path(values["output"]).exists()


def test_contained_target_is_pruned_from_the_next_larger_one(recipe_values: dict[str, Any]) -> None:
    shallow = {"num_layers": 1}
    values = several(recipe_values, {"large": LARGE, "shallow": shallow, "small": SMALL})
    parts = {
        Path(part.recipe.output).name: part
        for part in plan_recipe(parse_recipe(values)).plans.values()
    }
    source = values["model"]["source"]
    assert parts["large"].recipe.model.source == source
    assert parts["shallow"].recipe.model.source == source  # wider than large
    nested = parts["small"].recipe
    assert nested.model.source == str(Path(values["output"]) / "large" / "pruned")
    assert parts["small"].source == parts["large"].target
    assert nested.model.tokenizer == source
    assert nested.training.seed != parts["large"].recipe.training.seed
    assert parts["shallow"].recipe.training.seed == parts["large"].recipe.training.seed
    values["model"]["nested"] = False
    apart = plan_recipe(parse_recipe(values))
    assert {part.recipe.model.source for part in apart.plans.values()} == {source}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"large": LARGE, "small": {"hidden_size": 64}}, ["model.targets.small", "64"]),
        ({"large": LARGE, "small": {"params": "1B"}}, ["model.targets.small.params", "possible"]),
        ({"large": LARGE, "same": LARGE}, ["model.targets", "large", "same", "drop one"]),
        ({"large": LARGE, "whole": {"num_layers": 3}}, ["model.targets.whole", "nothing would"]),
    ],
)
def test_problems_are_named_by_target(
    recipe_values: dict[str, Any], targets: dict[str, Any], words: list[str]
) -> None:
    message = problems(recipe_values, targets=targets)
    for word in words:
        assert word in message


def test_kinds_of_layers_that_a_larger_target_keeps_are_not_known_to_a_plan(
    recipe_values: dict[str, Any], model_folder: Path
) -> None:
    shape = json.loads((model_folder / "config.json").read_text()) | {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 4,
        "use_sliding_window": True, "sliding_window": 8,
        "layer_types": ["full_attention", "full_attention", *["sliding_attention"] * 2],
    }  # fmt: skip
    targets = {"large": {"num_layers": 3}, "small": {"num_layers": 1}}
    source = recipe_values["model"]["source"]
    recipe_values["model"] = {
        "source": "org/model", "tokenizer": source, "shape": shape, "targets": targets,
    }  # fmt: skip
    assert plan_recipe(parse_recipe(recipe_values)).problems == []


def test_problem_of_all_targets_is_named_once(recipe_values: dict[str, Any]) -> None:
    recipe_values["data"]["domains"]["numbers"]["source"] = "none.jsonl"
    message = problems(recipe_values, targets={"large": LARGE, "small": SMALL})
    assert message.count("none.jsonl") == 1


def contents(folder: Path) -> dict[Path, bytes]:
    kinds = ("pruned", "model", "metrics.jsonl", "prune")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder): path.read_bytes()
        for path in files
        if any(kind in path.relative_to(folder).parts for kind in kinds)
        and path.suffix in {".safetensors", ".bin"}
    }


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The runs on every page that would have been written; drawing them takes long."""
    written: list[list[str]] = []

    def note(folders: list[Path], output: Path | None = None) -> Path:
        written.append([folder.name for folder in folders])
        return output or folders[0] / "report.html"

    monkeypatch.setattr("drpruning.pipeline.targets.write_report", note)
    monkeypatch.setattr("drpruning.pipeline.run.write_report", note)
    return written


def test_targets_run_share_their_data_and_go_on(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    pages: list[list[str]],
) -> None:  # fmt: skip
    values = several(recipe_values, {"small": SMALL, "large": LARGE})
    recipe = parse_recipe(values)
    whole = Path(recipe.output)
    run_recipe(recipe, "run", STAGES)
    assert pages == [["large"], ["small"], ["large", "small"]]
    assert (whole / "data" / "manifest.json").is_file()
    for name, target in (("large", LARGE), ("small", WHOLE)):
        folder = whole / name
        assert not (folder / "data").exists()
        own = load_recipe(folder / "recipe.yaml").model
        assert own.target is not None
        assert own.targets is None
        for stage in ("pruned", "model"):
            shape = ModelShape.of(folder / stage)
            assert {key: getattr(shape, key) for key in target} == target
        assert (folder / "evaluation" / "model.json").is_file()
    assert load_recipe(whole / "recipe.yaml").model.targets is not None

    # Interrupted in the second target, then the same call: as if it had not been.
    broken = parse_recipe({**values, "output": str(tmp_path / "broken")})
    pretrain = phases.pretrain

    def interrupted(own: Any, *rest: Any) -> None:
        if own.output.endswith("small"):
            raise Interrupted
        pretrain(own, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("drpruning.training.phases.pretrain", interrupted)
        with pytest.raises(Interrupted):
            run_recipe(broken, "run", STAGES)
    assert (tmp_path / "broken" / "small" / "pruned").is_dir()
    assert not (tmp_path / "broken" / "small" / "model").exists()
    run_recipe(broken, "run", STAGES)
    assert contents(tmp_path / "broken") == contents(whole)

    # A complete run that was moved is done already.
    moved = tmp_path / "moved"
    whole.rename(moved)
    before = contents(moved)
    times = {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")}
    again = {**values, "training": {**values["training"], "micro_batch": 2}, "output": str(moved)}
    output = drprune("run", write(again, tmp_path / "moved.yaml"))
    assert output.count("done already") == 4
    for name in ("", "large", "small"):
        assert load_recipe(moved / name / "recipe.yaml").training.micro_batch == 4, "as it was run"
    assert contents(moved) == before
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")} == times

    # Commands on the folder of all.
    assert run_folders([moved]) == [moved / "large", moved / "small"]
    drprune("report", moved)
    page = (moved / "report.html").read_text()
    assert "large" in page
    assert "small" in page
    assert "recovered" in drprune("evaluate", moved)
    with pytest.raises(BadInput, match="a run of its own"):
        Run.open(moved)
    message = problems({**values, "output": str(moved)}, targets={"large": LARGE, "s": SMALL})
    assert "another recipe" in message
    assert "large holds a finished run with other settings" in problems(
        {**values, "output": str(moved), "pretrain": {**values["pretrain"], "steps": 9},
         "training": {**values["training"], "checkpoint": {"accept_changes": True}}}
    )  # fmt: skip


def test_commands_stage_by_stage(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    values = several(recipe_values, {"large": LARGE, "small": SMALL})
    file = write(values, tmp_path / "recipe.yaml")
    output = Path(values["output"])
    with pytest.raises(BadInput, match="none of its targets"):
        drprune_prepared(file, output)
    drprune("prune", file)
    assert (output / "large" / "pruned").is_dir()
    assert (output / "small" / "pruned").is_dir()
    assert not (output / "small" / "model").exists()
    drprune("pretrain", file)
    assert (output / "small" / "model").is_dir()
    # One target's folder is an ordinary run; the blocks are those of all.
    assert drprune("prune", output / "small" / "recipe.yaml").count("done already") == 1


def drprune_prepared(file: Path, output: Path) -> None:
    """Begin nothing but the folder of all targets, as a command killed at the start does."""
    recipe = plan_recipe(load_recipe(file)).recipe
    output.mkdir(parents=True)
    (output / "sessions.jsonl").write_text("{}\n")
    (output / "recipe.yaml").write_text(recipe.to_yaml())
    run_folders([output])


@pytest.mark.slow
def test_two_ranks_equal_one(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    values = several(recipe_values, {"large": LARGE, "small": {"params": 5_000}})
    one, two = ({**values, "output": str(tmp_path / name)} for name in ("one", "two"))
    run_recipe(parse_recipe(one), "prune", ["prepare", "prune"])
    file = write(two, tmp_path / "two.yaml")
    on_two_ranks("prune", file)
    for name in ("large", "small"):
        plans = [Path(v["output"]) / name / "prune" / "plan.json" for v in (one, two)]
        assert plans[0].read_text() == plans[1].read_text()


def test_reference_models_are_measured_once_for_all_targets(
    recipe_values: dict[str, Any], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drpruning.training import perplexity as evaluation

    measured = []
    original = evaluation.evaluate_perplexity

    def counted(name: str, *rest: Any, **options: Any) -> Any:
        measured.append(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(evaluation, "evaluate_perplexity", counted)
    values = several(recipe_values, {"large": LARGE, "small": SMALL})
    values["scheduling"] = {"reference_loss": {"from_model": str(model_folder)}}
    run_recipe(parse_recipe(values), "prune", ["prepare", "prune"])
    assert len(measured) == 1
    files = [Path(values["output"]) / name / "reference_loss.json" for name in ("large", "small")]
    first, second = (json.loads(file.read_text())["reference_loss"] for file in files)
    assert first == second


def test_resolved_recipes_read_back_the_same(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    values = several(recipe_values, {"large": {"params": 18_000}, "small": SMALL})
    plan = plan_recipe(parse_recipe(values))
    recipes = [plan.recipe, *(part.recipe for part in plan.plans.values())]
    assert len(recipes) == 3
    for recipe in recipes:
        file = tmp_path / "resolved.yaml"
        file.write_text(recipe.to_yaml())
        assert load_recipe(file) == recipe
