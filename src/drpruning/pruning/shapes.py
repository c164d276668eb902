"""The shape of a model and what it can be pruned to. Importable without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from drpruning.errors import BadInput
from drpruning.pruning.families import FAMILIES, Axis, Family, count_parameters, family_of

_CONFIG_NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
PRUNABLE = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
"""Dimensions that a target may name."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Every number that decides the size of a decoder of a known family.

    Attributes:
        model_type: the family, see `drpruning.pruning.families.FAMILIES`.
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward network.
        num_heads: query heads of a layer.
        num_kv_heads: key-value heads of a layer (groups of query heads).
        head_dim: size of a head; pruning leaves it alone.
        vocab_size: rows of the embedding; pruning leaves it alone.
        tied_embeddings: whether input and output matrix are one.
        switches: the family's configuration switches that are on (such as `mlp_bias`), sorted.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    switches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise BadInput(
                f"model_type {self.model_type!r} is not a family that can be pruned; "
                f"known families: {', '.join(FAMILIES)}"
            )
        for name in (*PRUNABLE, "head_dim", "vocab_size"):
            _check_whole(name, getattr(self, name))
        if self.num_heads % self.num_kv_heads:
            raise BadInput(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        for switch in self.switches:
            if switch not in self.family.optional_parameters:
                raise BadInput(f"{self.model_type} has no configuration switch {switch!r}")

    @classmethod
    def of(cls, source: object) -> Self:
        """The shape of a model.

        Args:
            source: a Transformers model or configuration, a parsed config.json, or the path of a
                folder with a config.json (or of that file).

        Raises:
            BadInput: no causal language model of a known family, or a number is missing.
        """
        config = _config_dict(source)
        family = family_of(config)
        names = _CONFIG_NAMES | {"vocab_size": "vocab_size"}
        numbers: dict[str, Any] = {name: config.get(key) for name, key in names.items()}
        for name in ("num_layers", "hidden_size", "intermediate_size", "num_heads", "vocab_size"):
            _check_whole(names[name], numbers[name])
        if numbers["num_kv_heads"] is None:
            numbers["num_kv_heads"] = numbers["num_heads"]
        if numbers["head_dim"] is None:
            numbers["head_dim"] = numbers["hidden_size"] // numbers["num_heads"]
        return cls(
            model_type=family.model_type,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            switches=tuple(sorted(s for s in family.optional_parameters if config.get(s))),
            **numbers,
        )

    @property
    def family(self) -> Family:
        """The table that says where the parts are."""
        return FAMILIES[self.model_type]

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads

    def axis_sizes(self) -> dict[Axis, int]:
        """Axis of a parameter -> its size."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "query": self.num_heads * self.head_dim,
            "key": self.num_kv_heads * self.head_dim,
            "intermediate": self.intermediate_size,
        }

    def num_parameters(self) -> int:
        """Parameters of the model, a tied matrix counted once; no weights are needed."""
        sizes = self.axis_sizes()
        outside = count_parameters(self.family.global_table(tied=self.tied_embeddings), sizes)
        layer = count_parameters(self.family.layer_table(self.switches), sizes)
        return int(outside + self.num_layers * layer)

    def num_embedding_parameters(self) -> int:
        """Parameters of the input and output matrices, a tied matrix counted once."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    def pruned_to(self, **target: int) -> Self:
        """The shape with some dimensions made smaller.

        Args:
            target: any of num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads.
                What is not named stays. The number of query heads per key-value head stays:
                naming either count moves the other.

        Raises:
            BadInput: a dimension that is unknown, no whole number, below 1, above the source's, or
                not reachable; the message says which and what would be possible.
        """
        for name, value in target.items():
            if name not in PRUNABLE:
                raise BadInput(f"{name!r} cannot be pruned; name any of {', '.join(PRUNABLE)}")
            _check_whole(name, value)
            if value > getattr(self, name):
                raise BadInput(
                    f"{name} {value} is larger than the source's {getattr(self, name)}; "
                    f"give at most {getattr(self, name)}"
                )
        sizes: dict[str, Any] = target | self._heads(target)
        shape = replace(self, **sizes)
        shape._check_hidden(self)
        return shape

    def _heads(self, target: Mapping[str, int]) -> dict[str, int]:
        group = self.queries_per_group
        heads, groups = target.get("num_heads"), target.get("num_kv_heads")
        if heads is None:
            groups = self.num_kv_heads if groups is None else groups
            return {"num_heads": groups * group, "num_kv_heads": groups}
        if heads % group:
            raise BadInput(
                f"num_heads {heads} is not reachable: each of the {self.num_kv_heads} key-value "
                f"heads serves {group} query heads and is kept or cut with them; "
                f"possible: {_nearest_multiples(heads, group, self.num_heads)}"
            )
        if groups is not None and heads != groups * group:
            raise BadInput(
                f"num_kv_heads {groups} with num_heads {heads} is not reachable: the source has "
                f"{group} query heads per key-value head and keeps that number; "
                f"write num_kv_heads {heads // group} or leave it out"
            )
        return {"num_heads": heads, "num_kv_heads": heads // group}

    def _check_hidden(self, source: Self) -> None:
        if not self.family.heads_divide_hidden or self.hidden_size % self.num_heads == 0:
            return
        sizes = _nearest_multiples(self.hidden_size, self.num_heads, source.hidden_size)
        step = source.queries_per_group
        heads = [n for n in range(step, source.num_heads + 1, step) if self.hidden_size % n == 0]
        below = [n for n in heads if n < self.num_heads][-1:]
        above = [n for n in heads if n > self.num_heads][:1]
        remedies = [f"hidden_size {sizes}"] if sizes else []
        if below or above:
            remedies.append(f"num_heads {' or '.join(map(str, below + above))}")
        raise BadInput(
            f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}, "
            f"as the {self.model_type} configuration demands; possible: {'; '.join(remedies)}"
        )

    def config_fields(self) -> dict[str, int]:
        """The dimensions under the names of a Transformers configuration."""
        return {config_name: getattr(self, name) for name, config_name in _CONFIG_NAMES.items()}

    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Field -> (value here, value there) for every field that differs."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object; `from_dict` reads it."""
        return asdict(self) | {"switches": list(self.switches)}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """The shape that `to_dict` wrote.

        Raises:
            BadInput: fields are missing, unknown or impossible.
        """
        names = {item.name for item in fields(cls)}
        required = names - {"tied_embeddings", "switches"}
        if not isinstance(data, Mapping):
            raise BadInput(f"a model shape must be an object with {', '.join(sorted(names))}")
        if missing := sorted(required - set(data)):
            raise BadInput(f"the model shape lacks {', '.join(missing)}")
        if unknown := sorted(set(map(str, data)) - names):
            raise BadInput(f"a model shape has no {', '.join(unknown)}")
        switches = data.get("switches", ())
        if not isinstance(switches, list | tuple) or not all(isinstance(s, str) for s in switches):
            raise BadInput(f"switches must be a list of names, not {switches!r}")
        return cls(**{**data, "switches": tuple(switches)})


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise BadInput(f"{name} must be at least 1, not {value}")


def _nearest_multiples(value: int, step: int, largest: int) -> str:
    below = value - value % step
    return " or ".join(str(n) for n in (below, below + step) if step <= n <= largest)


def _config_dict(source: object) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str | Path):
        return _read_config(Path(source))
    config = getattr(source, "config", source)
    if not hasattr(config, "to_dict"):
        raise BadInput(
            "a shape is read from a Transformers model or configuration, a configuration as a "
            f"dictionary or a folder with config.json, not from {type(source).__name__}"
        )
    values: dict[str, Any] = config.to_dict()
    return values


def _read_config(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file} does not exist; give a folder with a model's config.json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{file} does not hold a JSON object")
    return values
