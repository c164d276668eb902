"""Recipes on disk, the command line in process, and what a run has logged."""

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.pipeline.run import Run
from drpruning.recipe import parse_recipe

runner = CliRunner()
TIMES = {"time", "tokens_per_second", "evaluation_seconds", "update_seconds", "total_seconds"}
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


def drprune_in(folder: Path, command: str) -> Path:
    """Run a command on the recipe.yaml of a folder, from that folder; returns the folder."""
    with contextlib.chdir(folder):
        drprune(command, "recipe.yaml")
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged, without the fields that differ between two equal runs."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def evaluations(folder: Path, phase: str) -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [r for r in records if r["kind"] == "eval" and r["phase"] == phase]


def run(values: dict[str, Any], *stages: str) -> Path:
    with Run(parse_recipe(values)).session("test") as this:
        this.run(stages)
    return this.folder


def renamed(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The same recipe with another output folder."""
    other = copy.deepcopy(values)
    other["output"] = str(Path(values["output"]).with_name(name))
    return other


def variant(values: dict[str, Any], name: str, **training: Any) -> dict[str, Any]:
    """The same recipe with another output folder and training settings; the data are shared."""
    other = renamed(values, name)
    other["data"]["prepared"] = str(Path(values["output"]).with_name("data"))
    other["training"].update(training)
    return other


def only_pretraining(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe of the fixture `recipe_values` made to only continue pretraining."""
    del values["prune"], values["model"]["target"]
    values["pretrain"].update(steps=4)
    return values


def torchrun(
    ranks: int, *command: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in several processes, one thread each; conftest.py sees to the threads."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [sys.executable, *launch, *command],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def on_two_ranks(command: str, recipe: Path) -> None:
    """Run a command on a recipe in two processes."""
    done = torchrun(2, "-m", "drpruning.cli", command, recipe)
    assert done.returncode == 0, done.stderr[-3000:]


def altered_model(model_folder: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model's files with other values in its config.json."""
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder
