"""What is not known: NaN or an empty mapping in memory, null or left out in a JSON file."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Unknown(dict[str, Any]):
    """An empty mapping that stands for one that is not known."""


def nan_for_null(value: Any) -> Any:
    """NaN in place of None; any other value as it is."""
    return math.nan if value is None else value


def null_for_nan(values: Iterable[float]) -> list[float | None]:
    """None in place of NaN."""
    return [None if math.isnan(value) else value for value in values]


def record_fields(record: "DataclassInstance") -> dict[str, Any]:
    """The fields of a record by name, in their order, as a JSON file has them.

    A field without a default is always there, null where its value is not known. One with a default
    is left out where it has that default: the record says nothing of it.
    """
    found: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if not (optional and (value is field.default or isinstance(value, Unknown))):
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: objects, lists, texts and numbers."""
    if isinstance(value, Unknown):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return record_fields(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
