"""The JSON schema of recipes says what the loader says, as far as a schema can."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from drpruning import recipe as sections
from drpruning.cli.commands import app
from drpruning.common.errors import BadInput
from drpruning.recipe import Recipe, load_recipe, parse_recipe
from drpruning.recipe.json_schema import recipe_schema, schema_text
from drpruning.recipe.yaml_io import read_yaml
from helpers.json_schema import accepts
from helpers.small_recipe import small_recipe

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SCHEMA = recipe_schema()
EVERYTHING = {
    "model": {"source": "m", "target": {"num_layers": 2}},
    "data": {"domains": {"a": {"source": "a.jsonl", "share": 1.0}}},
    "scheduling": {"start": {"ratio": {"a": 1.0}}, "reference_loss": "auto"},
    "prune": {"steps": 5000, "distill": {"weight": 0.5}, "stop": {"evaluations": 2}},
    "pretrain": {"steps": 10, "distill": {"teachers": {"x": 1.0}}},
    "training": {"checkpoint": {}},
    "output": "out",
}
VALUES = [
    None, True, False, 0, 1, 3, -1, 0.5, 1e-4, 1.5, -0.5, 10**12, "", " ", "text", "none", "auto",
    "source", "self", "1.3B", "370 M", "1_000", "0B", "5GB", "0GB", "5", "bf16", "constant",
    "initial_or_equal", "taylor", "stop", "always", [], [0.9, 0.95], [1], ["x", "y", "z"],
    ["x", "x", "x"], ["x"], {}, {"a": 1.0}, {"a": 0.5}, {"a": 0.0}, {"a": -1.0}, {"a": "x"},
    {"a": {"a": 1.0}}, {"a": {"source": "x", "share": 1.0}}, {"a/b": {"source": "x", "share": 1}},
    {"a": {"params": "1B"}}, {"from_model": "x"}, {"from_models": ["x", "y", "z"]},
    {"from_modle": "x"}, {"steps": 4}, {"num_layers": 2}, {"params": 1e9}, {"k": [1, "x", True]},
    {"k": []}, {"k": None}, {"ratio": {"a": 1.0}}, {"unknown": 1},
]  # fmt: skip
BEYOND_A_SCHEMA = (
    "write either", "name a model in", "missing although", "needed where", "never be met",
    "must divide", "sum to", "every share is 0", "has no share", "every domain has a share",
    "exactly the domains", "compares with no reference", "no weight above 0", "write top_k",
    "at least one of",
)  # fmt: skip
"""Words of refusals that are about several fields together, or about null in all of them."""


def valid(values: Any) -> bool:
    return accepts(SCHEMA, values, SCHEMA)


def loaded(values: dict[str, Any]) -> str:
    """The refusal of the loader, or nothing."""
    try:
        parse_recipe(values)
    except BadInput as error:
        return str(error)
    return ""


def fields(
    section: type[sections.Section], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The paths of all fields that `EVERYTHING` has or could have."""
    place: Any = EVERYTHING
    for key in path:
        place = place[key]
    for name in section.model_fields:
        yield (*path, name)
        inner = place.get(name)
        if not isinstance(inner, dict):
            continue
        for other in vars(sections).values():
            is_section = isinstance(other, type) and issubclass(other, sections.Section)
            if is_section and other.__name__ in str(section.model_fields[name].annotation):
                key = ("a",) if name == "domains" else ()
                yield from fields(other, (*path, name, *key))
                break


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(EVERYTHING)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return values


def test_recipes_that_load_are_valid(tmp_path: Path) -> None:
    written = [read_yaml(path, "example") for path in EXAMPLES]
    resolved = [
        yaml.safe_load(load_recipe(path, ["model.source=m"]).to_yaml()) for path in EXAMPLES
    ]
    small = small_recipe(tmp_path / "m", tmp_path / "t", tmp_path / "o")
    recipes = [*written, *resolved, small, EVERYTHING]
    assert len(recipes) > 15
    assert all(map(valid, recipes))


ALL_FIELDS = list(fields(Recipe))


def test_all_fields_are_tried() -> None:
    assert len(ALL_FIELDS) > 90
    assert {"betas", "keep_every", "evaluations", "top_k", "where", "params"} <= {
        path[-1] for path in ALL_FIELDS
    }


@pytest.mark.parametrize("path", ALL_FIELDS, ids=".".join)
def test_the_schema_takes_what_the_loader_takes_and_nothing_else(path: tuple[str, ...]) -> None:
    for value in VALUES:
        values = changed(path, value)
        if path == ("scheduling", "start") and isinstance(value, str):  # load_recipe reads the file
            assert valid(values) is bool(value.strip()), value
            continue
        refusal = loaded(values)
        if not refusal:
            assert valid(values), value
        elif not any(words in refusal for words in BEYOND_A_SCHEMA):
            assert not valid(values), (value, refusal)


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("data",),
        ("data", "domains", "a"),
        ("prune",),
        ("prune", "stop"),
        ("scheduling", "start"),
    ],
)
def test_unknown_keys_are_not_valid(path: tuple[str, ...]) -> None:
    assert valid(EVERYTHING)
    assert not valid(changed((*path, "stepz"), 1))


@pytest.mark.parametrize("name", ["model", "data", "output"])
def test_what_every_recipe_needs_is_missed(name: str) -> None:
    assert not valid({key: value for key, value in EVERYTHING.items() if key != name})
    phases = ("prune", "pretrain")
    assert not valid({key: value for key, value in EVERYTHING.items() if key not in phases})


SECTIONS = {
    name: value
    for name, value in vars(sections).items()
    if isinstance(value, type) and issubclass(value, sections.Section)
}


@pytest.mark.parametrize("name", sorted(SECTIONS.keys() - {"Section", "Phase"}))
def test_every_field_is_described_with_its_default_and_valid_examples(name: str) -> None:
    made = SCHEMA if name == "Recipe" else SCHEMA["$defs"][name]
    made = made["anyOf"][1] if name == "Target" else made
    assert list(made["properties"]) == list(SECTIONS[name].model_fields)
    for field, info in SECTIONS[name].model_fields.items():
        found = made["properties"][field]
        assert found["description"].endswith("."), field
        assert "see below" not in found["description"], field
        if isinstance(info.default, bool | int | float | str):
            assert found["default"] == info.default
        for example in found.get("examples", []):
            assert accepts(found, example, SCHEMA), (field, example)


def test_the_schema_in_the_documents_is_this_one() -> None:
    published = (ROOT / "docs" / "recipe.schema.json").read_text()
    assert published == schema_text(), "drprune schema -o docs/recipe.schema.json makes it"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_name_the_schema_for_editors(path: Path) -> None:
    name = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads((path.parent / name).read_text()) == SCHEMA


def test_the_command_writes_it_to_a_file_or_prints_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.schema.json"
    for _ in range(2):  # it replaces its own
        result = CliRunner().invoke(app, ["schema", "-o", str(file)])
        assert result.exit_code == 0, result.output
        assert file.read_text() == schema_text()
        file.write_text(json.dumps({**SCHEMA, "properties": {}}))
    assert CliRunner().invoke(app, ["schema"]).output == schema_text()
    for content in ('{"a": 1}', "[1]", "model: {}"):
        file.write_text(content)
        result = CliRunner().invoke(app, ["schema", "-o", str(file)])
        assert result.exit_code == 2
        assert "was not written by this command" in result.stderr
        assert file.read_text() == content
