"""What must work with the base install alone: every package of the extras is made unimportable."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.base_install import without_extras
from helpers.logged_run import LoggedRun

ROOT = Path(__file__).parents[2]
BASE = {"numpy", "scipy", "pydantic", "typer", "rich", "ruamel.yaml"}


def test_base_dependencies_are_the_light_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.split(">")[0].split("=")[0].lower() for line in project["dependencies"]}
    assert names == BASE


def test_scheduling_works_without_the_extras() -> None:
    done = without_extras(
        "from drpruning.scheduling import DRPruning\n"
        "policy = DRPruning({'a': 0.6, 'b': 0.4}, 10, reference_loss={'a': 1.0, 'b': 1.0})\n"
        "print(policy.update(step=1, losses={'a': 1.5, 'b': 1.0}).ratio['a'] > 0.55)"
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--help"], "pretrain"), (["run", "--help"], "RECIPE"), (["--version"], "drprune")],
)
def test_help_works_without_the_extras(arguments: list[str], word: str) -> None:
    done = without_extras(f"from drpruning.cli.commands import app\napp({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_recipes_are_checked_and_planned_without_the_extras(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    done = without_extras(f"from drpruning.cli.commands import app\napp(['plan', {str(path)!r}])")
    assert done.returncode == 0, done.stderr
    assert "numbers" in done.stdout
    assert "documents: </s> last; special tokens written in the text are text" in done.stdout
    path.write_text(yaml.safe_dump({**recipe_values, "prun": {}}))
    done = without_extras(f"from drpruning.cli.commands import app\napp(['plan', {str(path)!r}])")
    assert done.returncode == 2
    assert "did you mean 'prune'" in done.stderr


def test_runs_are_replayed_without_the_extras(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("prune", "pretrain"))
    for arguments, word in (
        ([], "identical to the run's"),
        (["--policy", "group_dro", "--output", str(tmp_path / "replay.json")], "differ from"),
    ):
        command = ["replay", str(run.folder), *arguments]
        done = without_extras(f"from drpruning.cli.commands import app\napp({command!r})")
        assert done.returncode == 0, done.stderr
        assert word in done.stdout
    assert (tmp_path / "replay.json").is_file()
    outputs = [str(tmp_path / "first.json"), str(tmp_path / "replay.html")]
    command = ["replay", str(run.folder), *(w for file in outputs for w in ("--output", file))]
    done = without_extras(f"from drpruning.cli.commands import app\napp({command!r})")
    assert done.returncode == 2
    assert "pip install 'drpruning[train]'" in done.stderr
    assert not any(Path(file).exists() for file in outputs)


def test_running_without_the_extras_says_what_to_install(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    done = without_extras(f"from drpruning.cli.commands import app\napp(['run', {str(path)!r}])")
    assert done.returncode == 2
    assert "pip install 'drpruning[train]'" in done.stderr
    assert "Traceback" not in done.stderr
