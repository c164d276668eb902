"""The command as a user meets it: help, exit statuses, what a wrong input says, how fast."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from drpruning.cli.commands import app
from helpers.small_runs import altered_model

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
runner = CliRunner()


def write(values: dict[str, Any], folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def refused(*arguments: str | Path) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_help_names_every_command_and_the_exit_statuses() -> None:
    text = runner.invoke(app, ["--help"]).output
    training = ("prepare", "plan", "prune", "pretrain", "run", "demo", "evaluate", "report")
    for name in (*training, "watch", "replay", "reference-loss", "export-schedule"):
        assert name in text
        assert "Examples" in runner.invoke(app, [name, "--help"]).output
    assert "130" in text


def child(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout


def test_help_wrong_recipes_and_plans_do_not_import_torch(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    wrong = write({**recipe_values, "output": 3}, tmp_path)
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(recipe_values))
    for arguments, status in (
        (["--help"], 0), (["run", str(wrong)], 2), (["plan", str(good)], 0)
    ):  # fmt: skip
        code = (
            "import sys\nfrom drpruning.cli.commands import app\n"
            f"try: app({arguments!r})\nexcept SystemExit as e: assert e.code == {status}, e.code\n"
            "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
        )
        assert child(code).splitlines()[-1] == "[]", arguments


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_planned_offline(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["plan", str(path), "--set", f"output={tmp_path / 'out'}"]
    values = yaml.safe_load(path.read_text())
    local = [d for d in values["data"]["domains"].values() if d["source"].endswith(".jsonl")]
    for domain in local:
        for source in (domain["source"], domain["validation"]):
            file = tmp_path / source
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps({"text": "some words " * 400}) + "\n")
    if local:
        arguments += ["--set", f"data.root={tmp_path}"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "GiB" in result.output
    for name in values["data"]["domains"]:
        assert name in result.output


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama2-7b-to-2.7b", "2,701,560,320"),
        ("llama2-7b-to-1.3b", "1,345,423,360"),
        ("llama2-7b-to-0.5b", "373,867,520"),
        ("llama2-13b-to-1.3b", "13,015,864,320"),
        ("qwen2-7b-to-1.8b", "1,799,508,480"),
    ],
)
def test_plan_counts_the_papers_models_to_the_unit(name: str, parameters: str) -> None:
    path = next(path for path in EXAMPLES if path.stem == name)
    assert parameters in runner.invoke(app, ["plan", str(path)]).output


def test_plan_shows_numbers_and_warns_of_repetition(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe_values["pretrain"]["steps"] = 2000
    result = runner.invoke(app, ["plan", str(write(recipe_values, tmp_path))])
    assert result.exit_code == 0
    assert "data.domains.numbers" in result.output
    assert "run out at pretrain step" in result.output
    assert not Path(recipe_values["output"]).exists()


def test_plan_warns_where_the_floor_leaves_no_room(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    for domain in recipe_values["data"]["domains"].values():
        domain["share"] = 1 / 3
    path = write(recipe_values, tmp_path)
    smallest = runner.invoke(
        app, ["plan", str(path), "--set", "scheduling.floor=smallest_reference"]
    ).output
    assert "scheduling.floor" in smallest
    lower = runner.invoke(app, ["plan", str(path), "--set", "scheduling.floor=0.1"]).output
    assert "scheduling.floor" not in lower


def test_settings_that_do_not_change_the_result_may_differ_at_a_restart(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(recipe_values, tmp_path)
    assert runner.invoke(app, ["prepare", str(path)]).exit_code == 0
    monkeypatch.chdir(Path(recipe_values["output"]).parent)
    name = f"./{Path(recipe_values['output']).name}"
    arguments = ["--set", f"output={name}", "--set", "training.micro_batch=2"]
    result = runner.invoke(app, ["prepare", str(path), *arguments])
    assert result.exit_code == 0, result.output


def test_two_processes_do_not_share_a_run_folder(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    from drpruning.pipeline.run import Run
    from drpruning.recipe import parse_recipe

    path = write(recipe_values, tmp_path)
    with Run(parse_recipe(recipe_values)).session("first"):
        assert "another process" in refused("prepare", path)
    assert runner.invoke(app, ["prepare", str(path)]).exit_code == 0


def test_unfinished_preparation_is_resumed(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drpruning.data import preparation as preparing

    write_manifest, written = preparing.write_manifest, []

    def interrupted(folder: Path, manifest: dict[str, Any]) -> None:
        write_manifest(folder, manifest)
        written.append(len(manifest["domains"]))
        if len(manifest["domains"]) == 2:
            raise KeyboardInterrupt

    path = write(recipe_values, tmp_path)
    monkeypatch.setattr(preparing, "write_manifest", interrupted)
    assert runner.invoke(app, ["prepare", str(path)]).exit_code == 130
    monkeypatch.setattr(preparing, "write_manifest", write_manifest)
    assert runner.invoke(app, ["prepare", str(path)]).exit_code == 0
    assert written[-1] == 2


def test_model_with_another_tokenizer_is_not_measured(
    recipe_values: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    assert runner.invoke(app, ["prepare", str(write(recipe_values, tmp_path))]).exit_code == 0
    folder = altered_model(model_folder, tmp_path / "altered")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"green"', '"orange"'))
    assert "tokenizer" in refused("evaluate", folder, "--data", recipe_values["output"])


def test_output_with_another_run_is_refused_and_kept(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe_values["prune"].update(steps=4)
    path = write(recipe_values, tmp_path)
    assert runner.invoke(app, ["prune", str(path)]).exit_code == 0
    folder = Path(recipe_values["output"])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    message = refused("run", path, "--set", "prune.steps=21")
    assert "prune.steps (saved 4, now 21)" in message
    assert f"data.prepared: {folder / 'data'}" in message
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    later = runner.invoke(app, ["plan", str(path), "--set", "pretrain.learning_rate=1e-5"])
    assert later.exit_code == 0, "pretrain has not begun"
    message = refused("plan", path, "--set", "scheduling.rho=0.2")
    assert "scheduling.rho (saved 0.5, now 0.2)" in message


def test_pretrain_before_prune_says_what_to_do(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    assert "drprune prune" in refused("pretrain", write(recipe_values, tmp_path))


def test_evaluate_and_report_say_what_they_want(tmp_path: Path, model_folder: Path) -> None:
    assert "neither a run folder nor a model" in refused("evaluate", tmp_path)
    assert "--data" in refused("evaluate", model_folder)
    assert str(tmp_path) in refused("report", tmp_path)


def test_evaluate_measures_a_foreign_model_on_a_runs_data(
    recipe_values: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    del recipe_values["prune"], recipe_values["model"]["target"]
    path = write(recipe_values, tmp_path)
    assert runner.invoke(app, ["run", str(path)]).exit_code == 0
    folder = recipe_values["output"]
    result = runner.invoke(app, ["evaluate", str(model_folder), "--data", folder])
    assert result.exit_code == 0, result.output
    name = f"{model_folder.parent.name}-{model_folder.name}.json"
    record = json.loads((Path(folder) / "evaluation" / name).read_text())
    source = json.loads((Path(folder) / "evaluation" / "source.json").read_text())
    assert record["loss"] == source["loss"]
    twin = tmp_path / "elsewhere" / model_folder.parent.name / model_folder.name
    shutil.copytree(model_folder, twin)
    assert runner.invoke(app, ["evaluate", str(twin), "--data", folder]).exit_code == 0
    second = json.loads(
        (Path(folder) / "evaluation" / name.replace(".json", "-2.json")).read_text()
    )
    assert (record["path"], second["path"]) == (str(model_folder), str(twin))
    page = tmp_path / "page.html"
    assert runner.invoke(app, ["report", folder, "--output", str(page)]).exit_code == 0
    assert page.stat().st_size > 10_000
