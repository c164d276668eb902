"""What is not known: NaN or an empty mapping in memory, null or left out in a JSON file."""

import math
from collections.abc import Iterable
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
        unknown = isinstance(value, Unknown)
        if optional and (value is field.default or unknown):
            continue
        nested = is_dataclass(value) and not isinstance(value, type)
        found[field.name] = record_fields(value) if nested else None if unknown else value
    return found
