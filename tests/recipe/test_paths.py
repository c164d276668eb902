"""`~` and environment variables mean the same in every field that is a path, or may be one."""

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.pipeline.prepared import domain_sources
from drpruning.recipe import Recipe, load_recipe, parse_recipe
from drpruning.recipe.paths import escape_path, expand_path
from drpruning.recipe.yaml_io import dump_yaml
from drpruning.runs.records import load_run
from drpruning.runs.schedule_start import next_command
from helpers.small_runs import FOUND, drprune

DOMAINS = {name: {"source": "x", "share": 1 / 3} for name in ("numbers", "colours", "animals")}
SMALLEST: dict[str, Any] = {
    "model": {"source": "m"},
    "data": {"domains": DOMAINS},
    "pretrain": {"steps": 1},
    "output": "out",
}
FIELDS = [
    "model.source", "model.tokenizer", "model.target.like", "data.root", "data.prepared",
    "data.domains.numbers.source", "data.domains.numbers.validation", "output",
    "scheduling.reference_loss.from_model", "scheduling.reference_loss.from_models.1",
]  # fmt: skip


def with_field(path: str, value: str) -> dict[str, Any]:
    values = copy.deepcopy(SMALLEST)
    if path.startswith("model.target"):
        values["prune"] = {"steps": 1}
    if path.endswith("from_models.1"):
        return values | {"scheduling": {"reference_loss": {"from_models": ["a", value, "c"]}}}
    *parents, last = path.split(".")
    section = values
    for key in parents:
        section = section.setdefault(key, {})
    section[last] = value
    return values


def field_of(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for key in path.split("."):
        if isinstance(value, dict | list):
            value = value[int(key)] if isinstance(value, list) else value[key]
        else:
            value = getattr(value, key)
    return value


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/me", "DISK": "/disk", "PART": "part", "TILDE": "~/t",
                        "NOTHING": ""}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$DISK/x", "/disk/x"),
        ("a/${PART}s/$PART", "a/parts/part"),
        ("$TILDE/x", "/home/me/t/x"),
        ("cost$$5/$$DISK", "cost$5/$DISK"),
        ("./~x/$PART", "./~x/part"),
        ("a~/~b", "a~/~b"),
        ("owner/name", "owner/name"),
        ("https://host/~user/x?a=$DISK", "https://host/~user/x?a=$DISK"),
        ("s3://${PART}/$DISK", "s3://part/$DISK"),
    ],
)
def test_every_field_follows_one_rule(field: str, written: str, read: str, tmp_path: Path) -> None:
    recipe = parse_recipe(with_field(field, written))
    assert field_of(recipe, field) == read
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert field_of(load_recipe(file), field) == read, "the same when it is read again"
    assert load_recipe(file) == recipe


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("$UNSET/x", "the environment variable UNSET is not set; set it, or write $$ for a $"),
        ("${UNSET}", "the environment variable UNSET is not set"),
        ("$NOTHING/x", "the environment variable NOTHING is not set"),
        ("s3://${UNSET}/x", "the environment variable UNSET is not set"),
        ("a$", "a $ without the name of an environment variable; write $$ for a $"),
        ("${}/a", "a $ without the name"),
        ("~no-such-user/x", "there is no user no-such-user; write ./~no-such-user for a folder"),
    ],
)
def test_what_stands_for_nothing_is_refused_by_name(field: str, written: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_recipe(with_field(field, written))
    message = str(error.value)
    assert words in message
    assert field.removesuffix(".1") in message
    assert repr(written) in message


@given(st.text("~$/a{}.:_x ", max_size=12))
def test_a_path_that_is_written_is_read_as_it_was(path: str) -> None:
    if "://" not in path:
        assert expand_path(escape_path(path)).removeprefix("./") == path.removeprefix("./")


def test_a_start_is_found_by_the_same_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "start.yaml").write_text(dump_yaml(FOUND))
    for name in ("~/start.yaml", "$PLACE/start.yaml"):
        (tmp_path / "r.yaml").write_text(dump_yaml(SMALLEST | {"scheduling": {"start": name}}))
        start = load_recipe(tmp_path / "r.yaml").scheduling.start
        assert start is not None
        assert start.ratio == FOUND["ratio"]


def test_assignments_on_the_command_line_follow_it_too(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(dump_yaml(SMALLEST))
    recipe = load_recipe(tmp_path / "r.yaml", ["output=~/x", "data.root=$DISK/${PART}"])
    assert recipe.output == "/home/me/x"
    assert recipe.data.root == "/disk/part"
    recipe = load_recipe(
        tmp_path / "r.yaml", ["data.root=$DISK", "data.domains.numbers.source=x.txt"]
    )
    assert domain_sources(recipe)[0].source == "/disk/x.txt"


def test_a_run_lies_in_folders_of_any_name(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    odd = Path("~odd/$DISK/${PART}/$$")
    values = copy.deepcopy(recipe_values)
    values["data"]["prepared"] = escape_path(str(odd / "data"))
    values["output"] = escape_path(str(odd / "run"))
    Path("r.yaml").write_text(dump_yaml(values))
    drprune("prepare", "r.yaml")
    drprune("prepare", f"./{odd}/run/recipe.yaml")
    recipe = load_recipe(odd / "run/recipe.yaml")
    assert Path(recipe.output) == odd / "run"
    assert recipe.prepared_folder == odd / "data"
    manifest = json.loads((odd / "data/manifest.json").read_text())
    assert load_run(odd / "run").tokenizer == manifest["identity"]["tokenizer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml", "~odd"]


def test_the_command_that_is_shown_for_a_start_means_its_file() -> None:
    for name in ("start.yaml", "~odd/$DISK/it's.yaml"):
        (assignment,) = shlex.split(next_command(Path(name)).partition(" --set ")[2])
        field, _, value = assignment.partition("=")
        assert field == "scheduling.start"
        assert Path(expand_path(value)) == Path(name)


def test_options_that_no_shell_expands(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    values = recipe_values | {"output": "~/run"}
    (tmp_path / "home/r.yaml").write_text(dump_yaml(values))
    drprune("prepare", "~/r.yaml")
    drprune("evaluate", "~/run")
    drprune("report", "~/run", "--output=~/page.html")
    assert (tmp_path / "home/page.html").is_file()
    assert (tmp_path / "home/run/evaluation/source.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
