"""The tables of fields in docs/recipe.md, made from the schema: docstrings, defaults and words."""

import json
import re
from typing import Any

from drpruning import recipe
from drpruning.recipe.json_schema import recipe_schema

SCHEMA = recipe_schema()
SECTIONS: dict[str, type[recipe.Section]] = {
    name: value
    for name, value in vars(recipe).items()
    if isinstance(value, type) and issubclass(value, recipe.Section) and value.model_fields
}
del SECTIONS["Phase"]  # its fields stand in the tables of both phases
_TABLE = re.compile(r"(<!-- fields of (\w+) -->\n)(?:\|.*\n)*")


def with_tables(page: str) -> str:
    """The page with the table of a section under each `<!-- fields of SECTION -->`."""
    return _TABLE.sub(lambda found: found[1] + _table(found[2]), page)


def sections_of(page: str) -> list[str]:
    return [found[2] for found in _TABLE.finditer(page)]


def _table(section: str) -> str:
    made = SCHEMA if section == "Recipe" else SCHEMA["$defs"][section]
    made = made["anyOf"][1] if section == "Target" else made
    rows = [
        f"| `{name}` | {_default(section, name, field)} | {_text(field)} |\n"
        for name, field in made["properties"].items()
    ]
    return "".join(["| field | default | |\n", "|---|---|---|\n", *rows])


def _default(section: str, name: str, field: dict[str, Any]) -> str:
    info = SECTIONS[section].model_fields[name]
    if info.is_required():
        return "required"
    if "default" in field:
        value = field["default"]
        return f"`{value if isinstance(value, str) else json.dumps(value)}`"
    value = info.get_default(call_default_factory=True)
    return "none" if value is None else "`{}`" if value == {} else ""


def _text(field: dict[str, Any]) -> str:
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    words = [f"`{word}`" for choice in choices for word in choice.get("enum", [])]
    title = "One of" if len(choices) == 1 else "Words:"
    description: str = field["description"]
    return description.replace("|", "\\|") + (f" {title} {', '.join(words)}." if words else "")
