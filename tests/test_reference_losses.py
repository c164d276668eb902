"""Reference losses from models, and what one run has found as the start of another."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from drpruning.cli import app
from drpruning.errors import BadInput
from drpruning.recipe import ReferenceModels, load_recipe, parse_recipe
from drpruning.run import Run
from drpruning.schedule_export import export_schedule, start_text
from drpruning.scheduling import POLICY_NAMES, Policy, worst_case_ratio
from drpruning.training import MeasuredModel, ReferenceLosses, phase_policy
from test_base_install import without_extras

runner = CliRunner()
DOMAINS = ("numbers", "colours", "animals")
FOUND = {
    "ratio": {"numbers": 0.5, "colours": 0.1 + 0.2, "animals": 0.2},
    "reference_ratio": {"numbers": 0.55, "colours": 0.35, "animals": 0.1},
    "reference_loss": {"numbers": 2.1, "colours": 1 / 3, "animals": 0.0},
}


def write(values: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def drprune(*arguments: str | Path, status: int = 0) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def evaluations(folder: Path, phase: str) -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [r for r in records if r["kind"] == "eval" and r["phase"] == phase]


def run(values: dict[str, Any], *stages: str) -> Path:
    with Run(parse_recipe(values)).session("test") as this:
        this.run(stages)
    return this.folder


@pytest.fixture(scope="session")
def sizes(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models with one tokenizer; the larger, the smaller their logits and so their losses."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folders = []
    for hidden, spread in ((8, 4.0), (16, 2.0), (24, 0.5)):
        folder = tmp_path_factory.mktemp(f"size{hidden}")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((model_folder / name).read_bytes())
        config = LlamaConfig.from_pretrained(model_folder)
        config.hidden_size, config.num_hidden_layers = hidden, 1
        torch.manual_seed(hidden)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.normal_(0, spread / hidden**0.5)
        model.save_pretrained(folder)
        folders.append(str(folder))
    return folders


@pytest.fixture
def pretraining(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """A recipe that only continues pretraining, for three evaluations."""
    del recipe_values["prune"], recipe_values["model"]["target"]
    recipe_values["pretrain"].update(steps=4)
    return recipe_values


def altered(folder: Path, place: Path, name: str, old: str, new: str) -> str:
    """A copy of a model folder with something else in one of its files."""
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    text = (place / name).read_text()
    assert old in text
    (place / name).write_text(text.replace(old, new))
    return str(place)


# From models.


def test_a_models_losses_are_measured_once_and_used_from_the_first_evaluation(
    pretraining: dict[str, Any], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretraining["scheduling"] = {
        "reference_loss": {"from_model": str(model_folder)},
        "forecast": False,
    }
    folder = run(pretraining, "pretrain")
    saved = json.loads((folder / "reference_loss.json").read_text())
    assert saved["version"] == 1
    assert saved["law"] is None
    assert [model["path"] for model in saved["models"]] == [str(model_folder)]
    first = evaluations(folder, "pretrain")[0]
    assert first["reference_loss"] == saved["reference_loss"]
    assert first["loss"] == saved["reference_loss"], "the source is its own reference here"

    def measured_again(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("drpruning.run.measure_reference_losses", measured_again)
    for file in (folder / "model").iterdir():
        file.unlink()
    (folder / "model").rmdir()
    run(pretraining, "pretrain")
    assert evaluations(folder, "pretrain")[0]["reference_loss"] == saved["reference_loss"]


def test_both_phases_use_the_same_reference_losses(
    recipe_values: dict[str, Any], model_folder: Path
) -> None:
    recipe_values["scheduling"] = {
        "policy": "sheared",
        "reference_loss": {"from_model": str(model_folder)},
    }
    recipe_values["prune"].update(steps=4)
    recipe_values["pretrain"].update(steps=4)
    folder = run(recipe_values, "prune", "pretrain")
    expected = json.loads((folder / "reference_loss.json").read_text())["reference_loss"]
    for phase in ("prune", "pretrain"):
        assert all(e["reference_loss"] == expected for e in evaluations(folder, phase))


def test_several_sizes_give_the_law_at_the_targets_size(
    pretraining: dict[str, Any], sizes: list[str]
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_models": sizes[::-1]}}
    folder = run(pretraining, "pretrain")
    saved = json.loads((folder / "reference_loss.json").read_text())
    assert [model["path"] for model in saved["models"]] == sizes
    first = evaluations(folder, "pretrain")[0]
    assert saved["parameters"] == first["parameters"]
    for domain in DOMAINS:
        law = saved["law"][domain]
        expected = law["a"] / saved["parameters"] ** law["b"] + law["c"]
        assert first["reference_loss"][domain] == pytest.approx(expected, rel=1e-9)


def measured(path: str, parameters: int, *losses: float) -> MeasuredModel:
    return MeasuredModel(path, parameters, dict(zip("ab", losses, strict=True)))


def test_law_through_three_sizes_meets_them() -> None:
    models = [measured("x", 10, 4.0, 3.0), measured("z", 160, 2.5, 1.5), measured("y", 40, 3.0, 2)]
    found = ReferenceLosses.of(models, parameters=40)
    assert found.reference_loss == pytest.approx({"a": 3.0, "b": 2.0})
    larger = ReferenceLosses.of(models, parameters=80).reference_loss
    assert 2.5 < larger["a"] < 3.0
    assert 1.5 < larger["b"] < 2.0


def test_losses_that_do_not_fall_with_size_are_refused_by_name() -> None:
    models = [measured("x", 10, 4.0, 3.0), measured("y", 40, 3.0, 2.0), measured("z", 99, 2.0, 2.1)]
    with pytest.raises(BadInput, match=r"from_models: on b .* 2\.0000 of y .* 2\.1000 of z"):
        ReferenceLosses.of(models, parameters=20)


def test_file_reads_back_and_is_only_for_its_models(tmp_path: Path) -> None:
    models = [measured("x", 10, 4.0, 3.0), measured("y", 40, 3.0, 2.0), measured("z", 99, 2.0, 1.1)]
    found = ReferenceLosses.of(models, parameters=20)
    found.write(tmp_path)
    wanted = ReferenceModels(from_models=["z", "x", "y"])
    assert ReferenceLosses.read(tmp_path, wanted) == found
    other = ReferenceModels(from_model="x")
    with pytest.raises(BadInput, match="has the losses of x, y, z, not of x"):
        ReferenceLosses.read(tmp_path, other)
    (tmp_path / "reference_loss.json").write_text('{"version": 2}')
    with pytest.raises(BadInput, match=r"reference_loss\.json is not what"):
        ReferenceLosses.read(tmp_path, wanted)
    with pytest.raises(BadInput, match="not measured yet"):
        ReferenceLosses.read(tmp_path / "none", wanted)


def test_plan_says_where_reference_losses_come_from(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path
) -> None:
    def planned(**scheduling: Any) -> str:
        return drprune("plan", write(pretraining | {"scheduling": scheduling}, tmp_path / "r.yaml"))

    assert "reference losses: none until the first forecast" in planned()
    assert "reference losses: numbers" in planned(reference_loss=dict.fromkeys(DOMAINS, 1.0))
    assert "reference losses: scheduling.start" in planned(start=FOUND)
    assert f"reference losses: from {sizes[0]}" in planned(reference_loss={"from_model": sizes[0]})
    law = planned(reference_loss={"from_models": sizes})
    assert f"law over {sizes[0]}" in law
    assert "parameters; measured before training" in law
    assert not Path(pretraining["output"]).exists()


def test_models_that_cannot_be_compared_are_refused_beforehand(
    pretraining: dict[str, Any], sizes: list[str], model_folder: Path, tmp_path: Path
) -> None:
    def refused(setting: Any) -> str:
        values = pretraining | {"scheduling": {"reference_loss": setting}}
        return drprune("plan", write(values, tmp_path / "r.yaml"), status=2)

    orange = altered(model_folder, tmp_path / "orange", "tokenizer.json", '"green"', '"orange"')
    assert "cannot be compared" in refused({"from_model": orange})
    twin = altered(Path(sizes[0]), tmp_path / "twin", "config.json", "{", "{")
    assert "both have" in refused({"from_models": [*sizes, twin]})
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"scheduling.reference_loss: {empty} is no folder" in refused({"from_model": str(empty)})
    assert not Path(pretraining["output"]).exists()


def test_constant_ratio_takes_no_reference_models(
    pretraining: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    pretraining["scheduling"] = {
        "policy": "constant",
        "reference_loss": {"from_model": str(model_folder)},
    }
    message = drprune("plan", write(pretraining, tmp_path / "r.yaml"), status=2)
    assert "constant has no setting reference_loss" in message


def test_tokenizer_that_cuts_otherwise_is_refused_when_measuring(
    pretraining: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    other = altered(
        model_folder, tmp_path / "other", "tokenizer.json", '"Whitespace"', '"WhitespaceSplit"'
    )
    pretraining["scheduling"] = {"reference_loss": {"from_model": other}}
    message = drprune("run", write(pretraining, tmp_path / "r.yaml"), status=2)
    assert "cannot be compared" in message
    assert not (Path(pretraining["output"]) / "reference_loss.json").exists()


# The command.


def test_command_prints_and_saves_what_a_recipe_can_start_from(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path
) -> None:
    recipe, saved = write(pretraining, tmp_path / "r.yaml"), tmp_path / "found" / "start.yaml"
    models = [argument for size in sizes for argument in ("--model", size)]
    text = drprune("reference-loss", recipe, *models, "--params", "5000", "--output", saved)
    assert "law at" in text
    assert "5,000" in text
    assert "scheduling: reference_loss: " in text
    drprune("reference-loss", recipe, *models, "--params", "5000")
    beside = yaml.safe_load((tmp_path / "r.reference-loss.yaml").read_text())
    assert beside == yaml.safe_load(saved.read_text())
    started = load_recipe(recipe, [f"scheduling.start={saved}"]).scheduling.start
    assert started is not None
    assert started.reference_loss is not None
    for domain, loss in started.reference_loss.items():
        assert f"{domain}: {loss}" in text
    output = Path(pretraining["output"])
    assert not (output / "recipe.yaml").exists(), "the recipe may still change"
    drprune("pretrain", recipe, "--set", f"scheduling.start={saved}")
    assert evaluations(output, "pretrain")[0]["reference_loss"] == started.reference_loss


def test_command_shows_what_a_run_has_measured(
    pretraining: dict[str, Any], model_folder: Path
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_model": str(model_folder)}}
    folder = run(pretraining, "pretrain")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    text = drprune("reference-loss", folder)
    own = json.loads((folder / "reference_loss.json").read_text())["reference_loss"]
    assert all(f"{domain}: {loss}" in text for domain, loss in own.items())
    saved = folder / "reference-loss.yaml"
    assert yaml.safe_load(saved.read_text()) == {"reference_loss": own}
    saved.unlink()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert "--set" in drprune("reference-loss", folder, "--set", "output=x", status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "names no models to measure"),
        (["--model", "a", "--model", "b"], "three or more"),
        (["--model", "a", "--model", "b", "--model", "a"], "different sizes"),
        (["--model", "a", "--params", "5"], "--params"),
    ],
)
def test_command_says_what_it_lacks(
    pretraining: dict[str, Any], tmp_path: Path, arguments: list[str], words: str
) -> None:
    recipe = write(pretraining, tmp_path / "r.yaml")
    assert words in drprune("reference-loss", recipe, *arguments, status=2)


@pytest.mark.parametrize("name", ["reference-loss", "export-schedule"])
def test_commands_have_examples(name: str) -> None:
    assert "Examples" in drprune(name, "--help")


# Reuse.


def started_policy(values: dict[str, Any], **scheduling: Any) -> Policy:
    recipe = parse_recipe({**values, "scheduling": {"start": FOUND, **scheduling}})
    assert recipe.pretrain is not None
    return phase_policy(recipe, recipe.pretrain, final_params=1.0)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_starts_where_it_is_told_to(pretraining: dict[str, Any], name: str) -> None:
    policy = started_policy(pretraining, policy=name)
    assert policy.ratio == FOUND["ratio"]
    state = policy.state_dict()
    for key in ("reference_ratio", "reference_loss"):
        assert state.get(key, FOUND[key]) == FOUND[key]
    assert (name in {"drpruning", "naive_dro", "sheared"}) == ("reference_loss" in state)


def test_parts_that_a_start_lacks_are_the_recipes(pretraining: dict[str, Any]) -> None:
    shares = {name: domain["share"] for name, domain in pretraining["data"]["domains"].items()}
    only = {"reference_loss": FOUND["reference_loss"]}
    policy = started_policy(pretraining, start=only)
    assert policy.ratio == pytest.approx(shares)
    assert policy.state_dict()["reference_ratio"] == pytest.approx(shares)
    assert policy.state_dict()["reference_loss"] == FOUND["reference_loss"]


def test_start_that_the_floor_excludes_is_refused(pretraining: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"scheduling\.start: .*floor"):
        started_policy(
            pretraining,
            floor=0.09,
            rho=0.01,
            start={"reference_ratio": {"numbers": 0.9, "colours": 0.08, "animals": 0.02}},
        )


@pytest.mark.parametrize("handover", ["fresh", "continue"])
def test_what_a_run_has_found_is_where_the_next_begins(
    recipe_values: dict[str, Any], tmp_path: Path, handover: str
) -> None:
    recipe_values["scheduling"] = {"reference_start": 0.2}
    first = run(recipe_values, "prune", "pretrain")
    file = tmp_path / "found.yaml"
    text = drprune("export-schedule", first, "--output", file)
    assert "scheduling: {start:" in text
    assert "warning" not in text
    last = evaluations(first, "pretrain")[-1]
    exported = yaml.safe_load(file.read_text())
    assert exported == {name: last[name] for name in FOUND}

    second = copy.deepcopy(recipe_values)
    second["output"] = str(tmp_path / "second")
    second["data"]["prepared"] = str(first / "data")
    second["scheduling"] = {"handover": handover, "forecast": False, "start": str(file)}
    with Run(load_recipe(write(second, tmp_path / "r.yaml"))).session("test") as this:
        this.run(("prune", "pretrain"))
    file.unlink()
    assert Run.open(this.folder).recipe.scheduling.start == this.recipe.scheduling.start
    for phase in ("prune", "pretrain"):
        began = evaluations(this.folder, phase)[0]
        assert began["reference_loss"] == exported["reference_loss"]
        if phase == "pretrain" and handover == "continue":
            ended = evaluations(this.folder, "prune")[-1]
            assert began["reference_ratio"] == ended["reference_ratio"]
            assert began["reference_ratio"] != exported["reference_ratio"]
            continue
        assert began["reference_ratio"] == exported["reference_ratio"]
        excess = [began["loss"][d] - exported["reference_loss"][d] for d in DOMAINS]
        worst = worst_case_ratio(excess, [exported["reference_ratio"][d] for d in DOMAINS], 0.1)
        assert [began["ratio"][d] for d in DOMAINS] == pytest.approx(worst.tolist(), abs=1e-12)


def test_first_segment_follows_an_exported_ratio_that_nothing_moves(
    pretraining: dict[str, Any],
) -> None:
    pretraining["scheduling"] = {"policy": "constant", "start": {"ratio": FOUND["ratio"]}}
    folder = run(pretraining, "pretrain")
    began, after = evaluations(folder, "pretrain")[:2]
    assert began["ratio"] == FOUND["ratio"]
    blocks = pretraining["pretrain"]["global_batch"] * pretraining["pretrain"]["evaluate_every"]
    for domain, share in FOUND["ratio"].items():
        assert abs(after["realised_share"][domain] - share) * blocks < 1


def finished_run(folder: Path, recipe: dict[str, Any], **last: Any) -> Path:
    """A run folder by hand: pruning that is over and pretraining that is under way."""
    folder.mkdir()
    write(recipe, folder / "recipe.yaml")
    point = {"kind": "eval", "time": 1.7e9, "loss": dict.fromkeys(DOMAINS, 2.0), **FOUND}
    records = [
        {"kind": "start", "phase": "prune", "step": 0, "total_steps": 20, "global_batch": 8,
         "sequence_length": 16, "final_parameters": 9},
        {**point, "phase": "prune", "step": 20},
        {"kind": "end", "phase": "prune", "step": 20, "total_seconds": 1.0},
        {"kind": "start", "phase": "pretrain", "step": 0, "total_steps": 12, "global_batch": 8,
         "sequence_length": 16, "final_parameters": 9},
        {**point, **last, "phase": "pretrain", "step": 6},
    ]  # fmt: skip
    lines = [json.dumps({"time": 1.7e9, **record}) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_unfinished_run_is_exported_with_a_warning(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(
        tmp_path / "made", recipe_values, reference_loss={"numbers": 1.0, "colours": None}
    )
    latest = export_schedule(folder)
    assert set(latest.start) == {"ratio", "reference_ratio"}
    assert "pretrain is not complete (step 6 of 12)" in latest.warnings[0]
    assert "colours, animals" in latest.warnings[1]
    pruned = export_schedule(folder, "prune")
    assert pruned.start == FOUND
    assert pruned.warnings == []
    text = start_text(pruned.start, pruned.comments)
    assert "# phase: prune, step 20 of 20" in text
    assert "# initial shares: {numbers: 0.6, colours: 0.3, animals: 0.1}" in text
    assert yaml.safe_load(text) == FOUND


def test_reference_losses_of_zero_are_none(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    zeros = dict.fromkeys(DOMAINS, 0.0)
    found = export_schedule(finished_run(tmp_path / "made", recipe_values, reference_loss=zeros))
    assert set(found.start) == {"ratio", "reference_ratio"}


@pytest.mark.parametrize("phase", ["prune", "tune"])
def test_what_is_not_there_is_not_exported(
    recipe_values: dict[str, Any], tmp_path: Path, phase: str
) -> None:
    assert "no evaluation" in drprune("export-schedule", tmp_path, "--phase", phase, status=2)
    folder = finished_run(tmp_path / "made", recipe_values)
    target = tmp_path / "file"
    target.write_text("")
    arguments: list[str | Path] = [
        "export-schedule",
        folder,
        "--phase",
        phase,
        "--output",
        target / "x.yaml",
    ]
    message = drprune(*arguments, status=2)
    assert ("--output" if phase == "prune" else "choose one of prune, pretrain") in message


def test_name_of_a_run_cannot_get_out_of_the_comments(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(tmp_path / "a\nratio: {b: 1.0}", recipe_values)
    found = export_schedule(folder, "prune")
    assert yaml.safe_load(start_text(found.start, found.comments)) == FOUND


def test_export_and_start_work_without_the_extras(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(tmp_path / "made", recipe_values)
    recipe = write(recipe_values, tmp_path / "r.yaml")
    exported = without_extras(
        f"from drpruning.cli import app\napp(['export-schedule', {str(folder)!r}])"
    )
    assert exported.returncode == 0, exported.stderr
    assert "warning: pretrain is not complete" in exported.stderr
    start = f"scheduling.start={folder / 'start.yaml'}"
    planned = without_extras(
        f"from drpruning.cli import app\napp(['plan', {str(recipe)!r}, '--set', {start!r}])"
    )
    assert planned.returncode == 0, planned.stderr
    assert "reference losses: scheduling.start" in planned.stdout


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_models": sizes}}
    one = run(pretraining, "pretrain")
    pretraining["output"] = str(tmp_path / "two")
    recipe = write(pretraining, tmp_path / "two.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node=2", "-m", "drpruning.cli", "pretrain", str(recipe)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    there = [json.loads((f / "reference_loss.json").read_text()) for f in (one, tmp_path / "two")]
    for here, other in zip(there[0]["models"], there[1]["models"], strict=True):
        assert here["loss"] == pytest.approx(other["loss"], abs=1e-5)
    first = [evaluations(folder, "pretrain")[0] for folder in (one, tmp_path / "two")]
    assert first[0]["ratio"] == pytest.approx(first[1]["ratio"], abs=1e-3)
