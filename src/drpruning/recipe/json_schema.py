"""The JSON schema of a recipe, by which editors complete and check the file while it is written.

It is made from the sections: types, bounds and words are those that the loader checks, descriptions
are the docstrings of the fields. What a schema cannot say is left to the loader: that shares sum to
1, that settings fit together, that a whole number is written without a point.
"""

import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from drpruning.common.errors import BadInput
from drpruning.common.files import (
    FOLDER_NAME,
    atomic_write,
    check_output_file,
    dumps,
    parse_json,
)
from drpruning.common.hub import HUB_REVISION
from drpruning.recipe.distillation import Distill
from drpruning.recipe.domains import Domain
from drpruning.recipe.model import ModelSection, Target
from drpruning.recipe.phases import PHASES, Phase
from drpruning.recipe.scheduling import DEFAULTS, ReferenceModels, Scheduling, Start
from drpruning.recipe.schema import Data, Recipe

DIALECT = GenerateJsonSchema.schema_dialect
TITLE = "drprune recipe"

_NOT_EMPTY = {"minProperties": 1}
_NOT_BLANK = {"pattern": r"\S"}
_PLAIN = {"type": ["string", "number", "boolean"]}
_FILE = {"type": "string", **_NOT_BLANK}

# What validators in Python accept or refuse beyond the types of the fields, and examples. Keywords
# for mappings, lists and texts leave other values alone, so they stand beside an `anyOf` with null.
_BESIDE: dict[tuple[type[BaseModel], str], dict[str, Any]] = {
    (ModelSection, "source"): {"examples": ["meta-llama/Llama-2-7b-hf", "models/base"]},
    (ModelSection, "revision"): {"pattern": f"^{HUB_REVISION.pattern}$"},
    (ModelSection, "target"): {
        "examples": [{"params": "1.3B"}, {"num_layers": 24, "hidden_size": 2048}]
    },
    (ModelSection, "targets"): {
        **_NOT_EMPTY,
        "propertyNames": {"pattern": f"^(?!(data|recipe.yaml|report.html)$){FOLDER_NAME.pattern}$"},
        "examples": [{"large": {"params": "2.7B"}, "small": {"params": "1.3B"}}],
    },
    (ModelSection, "max_shard_size"): {
        "pattern": r"^\s*(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})? ?[KMGTkmgt][Bb]\s*$",
        "examples": ["5GB", "500MB"],
    },
    (Target, "params"): {
        "anyOf": [
            {"type": "integer", "exclusiveMinimum": 0},
            {
                "type": "string",
                "pattern": r"^\s*(?=.*[1-9])[0-9][0-9_,]*(\.[0-9]+)? ?[KMBTkmbt]?\s*$",
            },
            {"type": "null"},
        ],
        "examples": ["1.3B", "370M", 1_300_000_000],
    },
    (Data, "domains"): {
        **_NOT_EMPTY,
        "propertyNames": {"pattern": f"^(?!.*manifest){FOLDER_NAME.pattern}$"},
        "examples": [{"web": {"source": "text/web", "share": 1.0}}],
    },
    (Data, "prepared"): _NOT_BLANK,
    (Domain, "source"): {"examples": ["text/web", "text/*.jsonl.zst", "uonlp/CulturaX"]},
    (Domain, "where"): {
        "additionalProperties": {
            "anyOf": [_PLAIN, {"type": "array", "items": _PLAIN, "minItems": 1}]
        },
        "examples": [{"language": ["en", "de"]}],
    },
    (Phase, "distill"): {"examples": ["none", {"teacher": "org/large", "weight": 0.9}]},
    (Distill, "teachers"): {**_NOT_EMPTY, "examples": [{"a": 0.7, "b": {"code": 1.0}}]},
    (Scheduling, "floor"): {"examples": [0.02, "initial_or_equal"]},
    (Scheduling, "reference_loss"): {
        "examples": ["auto", {"web": 2.1, "code": 0.9}, {"from_model": "org/large"}]
    },
    (ReferenceModels, "from_models"): {"minItems": 3, "uniqueItems": True},
    (Recipe, "output"): {**_NOT_BLANK, "examples": ["runs/first"]},
}
_ONE_OF_TWO: dict[type[BaseModel], tuple[str, str]] = {
    ModelSection: ("source", "shape"),
    Recipe: PHASES,
}
"""Sections that need at least one of two fields."""


class _Generator(GenerateJsonSchema):
    """pydantic's schema with what `_BESIDE` knows, without what tells an editor nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        """Titles would only repeat the names."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Null says that a field is absent, and an editor would write a complete section out."""
        made = super().default_schema(schema)
        if "default" in made and (made["default"] is None or isinstance(made["default"], dict)):
            del made["default"]
        return made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Complete a section and its fields."""
        section: type[BaseModel] = schema["cls"]
        made = super().model_schema(schema)
        del made["title"]
        for name, field in made["properties"].items():
            description = field.get("description") or _description(section, name)
            field["description"] = " ".join(description.split())
            for base in section.__mro__:
                field.update(_BESIDE.get((base, name), {}))
        if section is Scheduling:  # load_recipe puts the content in the place of the file's name
            made["properties"]["start"]["anyOf"].append(_FILE)
            for name, default in _default_settings().items():
                made["properties"][name]["default"] = default
        if section in _ONE_OF_TWO:
            made["anyOf"] = [{"required": [name]} for name in _ONE_OF_TWO[section]]
        if section in (Start, Target):
            made |= _NOT_EMPTY
        if section is Target:
            name_of_a_model = {"type": "string", "description": "A model of the shape."}
            return {"anyOf": [name_of_a_model, made]}
        return made


def _default_settings() -> dict[str, Any]:
    """The defaults of the settings of policies: those of the first policy that has the setting."""
    return {name: own[name] for own in reversed(DEFAULTS.values()) for name in own}


def _description(section: type[BaseModel], name: str) -> str:
    """The description of a field without a docstring: that of the field it replaces, or its type.

    Phases replace defaults of `Phase`; the fields of a recipe are sections.
    """
    inherited = (base.model_fields.get(name) for base in section.__mro__[1:] if base is Phase)
    described = next((field.description for field in inherited if field is not None), None)
    return described or inspect.getdoc(section.model_fields[name].annotation) or ""


def recipe_schema() -> dict[str, Any]:
    """Make the JSON schema (draft 2020-12) of a recipe file."""
    made = Recipe.model_json_schema(schema_generator=_Generator)
    return {"$schema": DIALECT, "title": TITLE, **made}


def schema_text() -> str:
    """The schema as the text of a file."""
    return dumps(recipe_schema(), indent=1) + "\n"


def write_schema(path: Path) -> None:
    """Write the schema to a file in one step.

    Raises:
        BadInput: In its place is something else than an earlier schema, or it cannot be written.
    """
    check_output_file(path, "--output", _is_schema)
    try:
        atomic_write(path, schema_text())
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror}; name another file") from None


def _is_schema(path: Path) -> bool:
    """Whether a file holds the schema of a recipe, of this version or of another."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and (found.get("$schema"), found.get("title")) == (
        DIALECT,
        TITLE,
    )
