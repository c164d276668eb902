"""Rows of Arrow tables: only the fields that are asked for, whatever else a table holds."""

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]
Path = tuple[str, ...]
"""Names of a column and of the fields of structs in it, one inside the other."""


class ColumnError(Exception):
    """A column cannot be read; the message says which, of what type, and why."""


def path_of(schema: Any, field: str) -> Path | None:
    """Where a field is: a column of that name, or what its dots lead to; None: nowhere.

    Raises:
        ColumnError: there are several fields of that name.
    """
    if field in schema.names:
        return _unique(schema, field, (field,))
    path: Path = ()
    inside = schema
    for name in field.split("."):
        if name not in _names(inside):
            return None
        path = _unique(inside, name, (*path, name))
        inside = inside.field(name).type
    return path


def rows_of(batch: Any, paths: Mapping[str, Path]) -> Iterator[Row]:
    """The rows of a record batch or table, with the fields that are asked for.

    Args:
        batch: with at least the columns that the paths lead to.
        paths: name -> where the field is.

    Raises:
        ColumnError: a value has no counterpart in Python.
    """
    columns = [_values(batch, name, path) for name, path in paths.items()]
    for values in zip(*columns, strict=True):
        yield dict(zip(paths, values, strict=True))


def _values(batch: Any, name: str, path: Path) -> list[Any]:
    import pyarrow.compute as pc

    column = batch.column(path[0])
    if len(path) > 1:  # what is inside of a null is null
        column = pc.struct_field(column, list(path[1:]))
    try:
        values: list[Any] = column.to_pylist()
    except Exception as error:  # time zones, dates, encodings, repeated names: all kinds of errors
        raise ColumnError(f"the column {name!r} of type {column.type}: {error}") from error
    return values


def _names(inside: Any) -> list[str]:
    """The names of the fields of a schema or struct; none of any other type."""
    import pyarrow as pa

    if isinstance(inside, pa.Schema):
        return list(inside.names)
    if not pa.types.is_struct(inside):
        return []
    return [inside.field(index).name for index in range(inside.num_fields)]


def _unique(inside: Any, name: str, path: Path) -> Path:
    if _names(inside).count(name) > 1:
        raise ColumnError(f"there are several fields of the name {'.'.join(path)!r}")
    return path
