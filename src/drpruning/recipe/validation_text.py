"""pydantic's validation errors as lines that say which field is wrong and what to write instead."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from drpruning.common.errors import shown

_WANTED = {
    "model_type": "write a mapping of its fields",
    "dict_type": "write a mapping of names and what they stand for",
    "list_type": "write a list",
    "tuple_type": "write a list",
    "bool_type": "write true or false",
    "string_type": "write text",
}
"""Remedies for pydantic's kinds of errors whose own words are about Python."""
_KEY = "[key]"  # where pydantic says that a mapping's key is wrong, not its value


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Explain a validation error: one line for each wrong field.

    Args:
        error: What validation raised.
        root: The model that was validated; its fields are what unknown keys are compared with.
    """
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"] if part != _KEY)
        remedy = _remedy(problem, root)
        lines.append(f"{place}: {remedy}" if place else remedy)
    return list(dict.fromkeys(lines))


def _remedy(problem: Mapping[str, Any], root: type[BaseModel]) -> str:
    location, kind, given = problem["loc"], problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = _known_keys(root, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key; {hint}"
    if location[-1:] == (_KEY,):
        return f"names are text; write {shown(str(given))} in quotes"
    if kind == "missing":
        return "missing; write it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = _WANTED.get(kind, message[0].lower() + message[1:])
    message = message.replace("input should be", "must be", 1)
    return message if isinstance(given, dict | BaseModel) else f"{message}, not {shown(given)}"


def _known_keys(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at this place takes."""
    section = root
    keys = iter(location)
    for key in keys:
        parts = [*_parts(section.model_fields[str(key)].annotation)]
        models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if not models:
            return []
        section = models[0]
        if any(get_origin(part) is dict for part in parts):
            next(keys, None)
    return list(section.model_fields)


def _parts(annotation: Any) -> Iterator[Any]:
    """Walk through an annotation and all annotations inside it."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
