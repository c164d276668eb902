"""The model section of a recipe: the source, and the shape or shapes to prune it to."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, PositiveInt, field_validator, model_validator

from drpruning.common.files import FOLDER_NAME
from drpruning.common.hub import HUB_REVISION
from drpruning.recipe.paths import PathText
from drpruning.recipe.section import Section, first_twin

DIMENSIONS = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
"""The dimensions that a target can name."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_TAKEN = {"data", "recipe.yaml", "report.html"}
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?) ?[KMGT]B", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"(\d[\d_,]*(?:\.\d+)?) ?([KMBT]?)", re.IGNORECASE)


def _parameter_count(value: Any) -> Any:
    """Read 1.3B, 370M, 1_300_000_000 or 1.3e9 as a whole number; a boolean or list is refused."""
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        digits, unit = match.groups()
        return round(float(re.sub("[_,]", "", digits)) * _UNITS[unit.upper()])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("write a number of parameters such as 1.3B, 370M or 1_300_000_000")
    return value


def _file_size(text: str) -> str:
    """Check a size of files as the Hub's tools take it."""
    found = _SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise ValueError("write a size such as 5GB or 500MB (KB, MB, GB or TB)")
    return text.strip()


class Target(Section):
    """The shape to prune to; what is not named stays as in the source."""

    num_layers: PositiveInt | None = None
    """Transformer layers."""
    hidden_size: PositiveInt | None = None
    """Residual-stream dimensions."""
    intermediate_size: PositiveInt | None = None
    """Feed-forward dimensions per layer."""
    num_heads: PositiveInt | None = None
    """Query heads per layer."""
    num_kv_heads: PositiveInt | None = None
    """Key/value heads per layer; if absent they follow the query heads."""
    like: PathText | None = None
    """A model that gives what is not named: a folder, a config.json, or a name on the Hub."""
    params: Annotated[PositiveInt, BeforeValidator(_parameter_count)] | None = None
    """A budget of parameters, all counted (1.3B, 370M): what is not named is searched for it."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_model(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"like": value}
        if not isinstance(value, Mapping | Target):
            raise ValueError("write dimensions, {params: 1.3B}, or the name of a model")
        return value

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"name at least one of {', '.join(type(self).model_fields)}")
        if self.like is not None and self.params is not None:
            raise ValueError("write either like or params")
        return self

    @property
    def is_resolved(self) -> bool:
        """Whether all dimensions are known; `like` or `params` then only say their origin."""
        open_ended = self.like is not None or self.params is not None
        return not open_ended or len(self.dimensions()) == len(DIMENSIONS)

    def dimensions(self) -> dict[str, int]:
        """The dimensions that are named, by name."""
        return self.model_dump(exclude_none=True, include=set(DIMENSIONS))


class ModelSection(Section):
    """The source model and the shape wanted."""

    source: PathText | None = None
    """A Hugging Face model folder, or a name on the Hub."""
    revision: str | None = None
    """The source's branch, tag or commit on the Hub; absent: its main branch."""
    shape: dict[str, Any] | None = None
    """The source's config (as in config.json), for planning without its files."""
    tokenizer: PathText | None = None
    """Folder or Hub name of the tokenizer; absent: the source's."""
    target: Target | None = None
    """The shape to prune to; absent where nothing is pruned."""
    targets: dict[str, Target] | None = None
    """Name -> shape, in place of `target`: several models from one source, each in OUTPUT/NAME."""
    nested: bool = True
    """Whether one of `targets` that is contained in a larger one is pruned on from that one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights of the run's last model; auto: that of the source's files."""
    max_shard_size: Annotated[str, AfterValidator(_file_size)] = "5GB"
    """Size of a file of weights in a result, at most, such as 5GB or 500MB."""

    @field_validator("revision")
    @classmethod
    def _can_be_a_revision(cls, revision: str | None) -> str | None:
        if revision is not None and not HUB_REVISION.fullmatch(revision):
            raise ValueError("write the name of a branch or tag, or a commit, in quotes")
        return revision

    @field_validator("targets")
    @classmethod
    def _name_folders(cls, targets: dict[str, Target] | None) -> dict[str, Target] | None:
        if targets is not None and not targets:
            raise ValueError("name at least one target")
        for name in targets or {}:
            if not FOLDER_NAME.fullmatch(name) or name.lower() in _TAKEN:
                raise ValueError(
                    f"the name {name!r} becomes a folder's in OUTPUT, beside "
                    f"{', '.join(sorted(_TAKEN))}: use at most 100 letters, digits, '-', '_', "
                    "'.', and another name"
                )
        if (twin := first_twin(targets or {})) is not None:
            raise ValueError(f"{twin[0]} and {twin[1]} differ by case alone; rename one of them")
        return targets

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.source is None and self.shape is None:
            raise ValueError("name a model in `source` (a folder or a Hub name)")
        if self.revision is not None and (self.source is None or "@" in self.source):
            raise ValueError("write `revision` beside a `source` that is a plain name on the Hub")
        if self.target is not None and self.targets is not None:
            raise ValueError("write either target or targets")
        return self

    @property
    def is_pruned(self) -> bool:
        """Whether there is a shape to prune to."""
        return self.target is not None or self.targets is not None

    @property
    def reference(self) -> str:
        """Folder or Hub name of the source; with a revision NAME@REVISION."""
        return str(self.source) + ("" if self.revision is None else f"@{self.revision}")

    @property
    def tokenizer_source(self) -> str:
        """Folder or Hub name of the tokenizer; with the source's revision where it is its own."""
        return self.reference if self.tokenizer is None else self.tokenizer
