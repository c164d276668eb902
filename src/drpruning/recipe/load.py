"""Reading recipes: from a file or a mapping, with changes from the command line."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from drpruning.common.errors import BadInput, shown
from drpruning.recipe.paths import expand_path
from drpruning.recipe.scheduling import Start, defaults_of
from drpruning.recipe.schema import Recipe
from drpruning.recipe.validation_text import explain
from drpruning.recipe.yaml_io import parse_yaml, read_yaml

_KEY = r"""(?:"[^"]+"|'[^']+'|[^."'=]+)"""
_ASSIGNMENT = re.compile(rf"({_KEY}(?:\.{_KEY})*)=(.*)", re.DOTALL)
"""A path such as data.domains."my.domain".share and a value."""


def _override(values: dict[str, Any], assignment: str) -> None:
    match = _ASSIGNMENT.fullmatch(assignment)
    if match is None:
        path = assignment.partition("=")[0]
        open_quote = any(path.count(quote) % 2 for quote in "\"'")
        problem = "a quote is not closed; " if open_quote else ""
        raise BadInput(
            f"--set {assignment}: {problem}write --set key.path=value, a key with a dot in quotes"
        )
    path, text = match.groups()
    *parents, last = (key.strip("\"'") for key in re.findall(_KEY, path))
    section = values
    for key in parents:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise BadInput(f"--set {assignment}: {key} is not a section")
    section[last] = parse_yaml(text, f"--set {path}")


def _drop_defaults(values: dict[str, Any]) -> None:
    """Take out settings at the defaults of their policy, so that another policy can be set.

    The recipe in a run folder has them all, and another policy does not take them.
    """
    scheduling = values.get("scheduling")
    if isinstance(scheduling, dict):
        for name, value in defaults_of(scheduling).items():
            if name in scheduling and scheduling[name] == value:
                del scheduling[name]


def _drop_preset(values: dict[str, Any]) -> None:
    """Take out the name of a set of defaults, which no policy but drpruning takes."""
    if isinstance(scheduling := values.get("scheduling"), dict):
        scheduling.pop("reference", None)


def _read_mapping(path: str | Path, label: str, expected: str) -> dict[str, Any]:
    values = read_yaml(path, label)
    if not isinstance(values, dict):
        raise BadInput(f"{path}: {expected}")
    return values


def read_values(path: str | Path) -> dict[str, Any]:
    """Read a recipe file as a plain mapping, not checked further.

    Raises:
        BadInput: The file cannot be read, or does not hold a mapping.
    """
    expected = "a recipe is a mapping with model, data, ...; see `drprune --help`"
    return _read_mapping(path, "recipe", expected)


def _put_start_in_place(values: dict[str, Any]) -> str | None:
    """Replace a file's name in `scheduling.start` by the file's content; returns the name."""
    scheduling = values.get("scheduling")
    if not isinstance(scheduling, dict) or not isinstance(file := scheduling.get("start"), str):
        return None
    if not file.strip():
        raise BadInput("scheduling.start: is empty; write the name of a file, or its content")
    try:
        file = expand_path(file)
    except ValueError as error:
        raise BadInput(f"scheduling.start: {error}, not {shown(file)}") from None
    expected = f"scheduling.start is a mapping with {', '.join(Start.model_fields)}"
    scheduling["start"] = _read_mapping(file, "scheduling.start:", expected)
    return file


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        overrides: `key.path=value` assignments, the value in YAML, applied on top. A key that has
            a dot stands in quotes.

    Returns:
        The recipe, checked as far as that is possible without its files. A file named in
        `scheduling.start` has been read into it.

    Raises:
        BadInput: The file cannot be read or a field is wrong; every wrong field is named.
    """
    values = read_values(path)
    if overrides := list(overrides):
        _drop_defaults(values)
        chosen = [c.partition("=")[2] for c in overrides if c.startswith("scheduling.policy=")]
        if chosen and chosen[-1].strip() != "drpruning":
            _drop_preset(values)
    for assignment in overrides:
        _override(values, assignment)
    start_file = _put_start_in_place(values)
    return parse_recipe(values, origin=str(path), start_file=start_file)


def parse_recipe(
    values: Mapping[str, Any], origin: str = "recipe", start_file: str | None = None
) -> Recipe:
    """Check a recipe that is already a mapping; see `load_recipe`.

    Args:
        values: The recipe.
        origin: Where it is from, for the message.
        start_file: The file that its `scheduling.start` was read from, if it was.

    Raises:
        BadInput: A field is wrong; every wrong field is named.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = explain(error, Recipe)
        if start_file is not None:
            place = "scheduling.start"
            problems = [
                f"{start_file}: {line}" if line.startswith(place) else line for line in problems
            ]
        joint = " " if len(problems) == 1 else "\n  "
        raise BadInput(f"{origin}:{joint}" + "\n  ".join(problems)) from None
