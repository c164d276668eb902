"""JSON text as typed records; a complaint names the file, the line and the field."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json
from drpruning.common.unknown import Unknown, nan_for_null
from drpruning.scheduling import Explanation

T = TypeVar("T")


def _unknown_for_null(value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
    return Unknown() if value is None else validated(value)


def _explanation(value: Any) -> Any:
    """Leave out what is null; inside a mapping null is NaN, and a list of two is a pair."""
    if not isinstance(value, dict):
        return Unknown() if value is None else value

    def known(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {key: known(value) for key, value in inner.items()}
        return tuple(map(nan_for_null, inner)) if isinstance(inner, list) else nan_for_null(inner)

    return {
        name: known(item) if isinstance(item, dict) else item
        for name, item in value.items()
        if item is not None
    }


Step = Annotated[int, Field(ge=0, lt=2**63)]
"""Number of a step."""
Number = Annotated[float, BeforeValidator(nan_for_null)]
"""A number; NaN where the file has null or nothing."""
OptionalNumber = Annotated[float | None, BeforeValidator(nan_for_null)]
"""Likewise, but None where the file has nothing."""
Numbers = Annotated[Mapping[str, Number], WrapValidator(_unknown_for_null)]
"""A number for each name; empty where the file has null or nothing, NaN for a null inside."""
Texts = Annotated[Mapping[str, str], WrapValidator(_unknown_for_null)]
"""A text for each name, likewise."""
NumberLists = Annotated[Mapping[str, list[Number]], WrapValidator(_unknown_for_null)]
"""A list of numbers for each name, likewise."""
Interval = Annotated[
    tuple[Number, Number], BeforeValidator(lambda raw: tuple(raw) if isinstance(raw, list) else raw)
]
"""A lower and an upper end."""
Intervals = Annotated[Mapping[str, Interval], WrapValidator(_unknown_for_null)]
"""An interval for each name; empty where the file has null or nothing."""
Blocks = Annotated[Mapping[str, list[int]], WrapValidator(_unknown_for_null)]
"""Ids of blocks for each domain, likewise."""
Explained = Annotated[Explanation, BeforeValidator(_explanation)]
"""What a policy says of its decision; it says nothing where the file has null or nothing."""


@cache
def _adapter(record: Any) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[record, BeforeValidator(lambda raw: _with_nulls(record, raw))])


def _with_nulls(record: type[Any], raw: Any) -> Any:
    """An object in which the fields that are always written are there, null if they were not."""
    always = [f.name for f in fields(record) if f.default is f.default_factory is MISSING]
    return dict.fromkeys(always) | raw if isinstance(raw, dict) else raw


def read_record(record: type[T], text: bytes, where: str) -> T:
    """A record from one JSON object.

    Args:
        record: A dataclass. Fields that the object has besides are passed over; one that is not
            there is null, which only some types take.
        text: The object.
        where: The file, and the line in it, for messages.

    Raises:
        BadInput: A field is missing or has the wrong type.
    """
    kind: Any = record
    try:
        found: T = _adapter(kind).validate_json(text, strict=True)
        return found
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    path = ".".join(map(str, problem["loc"]))
    wanted = problem["msg"].removeprefix("Value error, ")
    wanted = wanted.replace("Input should be", "must be", 1)
    given = "nothing" if problem["input"] is None else as_json(problem["input"])
    field = f"field {path!r}: " if path else ""
    raise BadInput(f"{where}: {field}{wanted}, found {given}")


def as_json(value: object) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_file(record: type[T], path: Path) -> T | None:
    """A record from a file with one JSON object; None where there is no such file.

    Raises:
        BadInput: It cannot be read, is not JSON, or a field has the wrong type.
    """
    if not path.is_file():
        return None
    text = file_bytes(path)
    try:
        parse_json(text)
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    return read_record(record, text, str(path))


def file_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        BadInput: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
