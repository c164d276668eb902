"""As much of a JSON schema validator (draft 2020-12) as the schema of a recipe needs."""

import re
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "integer": (int, float), "number": (int, float),
}  # fmt: skip
_ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "examples", "const", "enum",
                "type", "anyOf", "$ref", "properties", "required", "additionalProperties",
                "propertyNames", "minProperties", "items", "prefixItems", "minItems", "maxItems",
                "uniqueItems", "pattern", "minimum", "maximum", "exclusiveMinimum",
                "exclusiveMaximum"}  # fmt: skip


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Whether a value is valid.

    Args:
        schema: The schema, or a part of it.
        value: What YAML or JSON stands for.
        root: The complete schema, with `$defs`.
    """
    assert schema.keys() <= _ANNOTATIONS, schema.keys() - _ANNOTATIONS
    return _fits_kind(schema, value, root) and _fits_bounds(schema, value, root)


def _fits_kind(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    named = [root["$defs"][schema["$ref"].removeprefix("#/$defs/")]] if "$ref" in schema else []
    words = [schema["const"]] if "const" in schema else schema.get("enum", [value])
    return (
        all(accepts(part, value, root) for part in named)
        and ("anyOf" not in schema or any(accepts(p, value, root) for p in schema["anyOf"]))
        and ("type" not in schema or _is_of_type(schema["type"], value))
        and any(_same(word, value) for word in words)
    )


def _fits_bounds(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    if isinstance(value, dict):
        return _mapping(schema, value, root)
    if isinstance(value, list):
        return _list(schema, value, root)
    if isinstance(value, str):
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    return isinstance(value, bool) or value is None or _number(schema, value)


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _is_of_type(wanted: str | list[str], value: Any) -> bool:
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if isinstance(value, bool) and name != "boolean":
            continue
        if name == "integer" and isinstance(value, float) and not value.is_integer():
            continue
        if isinstance(value, _TYPES[name]):
            return True
    return False


def _mapping(schema: dict[str, Any], value: dict[str, Any], root: dict[str, Any]) -> bool:
    fields = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    parts = {key: fields.get(key, others) for key in value}
    names = schema.get("propertyNames", {})
    return (
        set(schema.get("required", [])) <= value.keys()
        and len(value) >= schema.get("minProperties", 0)
        and all(accepts(names, key, root) for key in value)
        and all(
            part is True or (part is not False and accepts(part, value[key], root))
            for key, part in parts.items()
        )
    )


def _list(schema: dict[str, Any], value: list[Any], root: dict[str, Any]) -> bool:
    first = schema.get("prefixItems", [])
    rest = schema.get("items", {})
    parts = [*first, *[rest] * len(value)][: len(value)]
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        and not (schema.get("uniqueItems") and len({repr(item) for item in value}) < len(value))
        and all(accepts(part, item, root) for part, item in zip(parts, value, strict=True))
    )


def _number(schema: dict[str, Any], value: float) -> bool:
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )
