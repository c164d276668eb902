"""The shape of a model and what it can be pruned to. Importable without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import log
from pathlib import Path
from typing import Any, Self

from drpruning.common.errors import BadInput, shown
from drpruning.common.files import read_json_object
from drpruning.pruning.families import (
    FAMILIES,
    Axis,
    Family,
    count_parameters,
    family_of,
    unknown_family,
    with_stacked,
)

PRUNABLE_LABELS = {
    "num_layers": "layers",
    "hidden_size": "hidden size",
    "intermediate_size": "intermediate size",
    "num_heads": "query heads",
    "num_kv_heads": "key/value heads",
}
"""Dimensions that a target may name, and what to call them for people."""
PRUNABLE = tuple(PRUNABLE_LABELS)
"""Their names."""
LARGEST = {
    "num_layers": 10_000,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_heads": 4096,
    "num_kv_heads": 4096,
    "head_dim": 2**16,
    "vocab_size": 2**24,
}
"""Largest value of every number of a shape, well above those of any model there is: what is larger
is a mistake, and work that grows with it would not come to an end."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that decide the size of a decoder of a known family.

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
        switches: the family's switches that are on (such as `mlp_bias`, or `longrope` for its
            rotary scaling), sorted.
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
            raise unknown_family(self.model_type)
        for name, largest in LARGEST.items():
            _check_size(name, getattr(self, name), largest)
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
            BadInput: it is no causal language model of a known family, or a number is missing,
                impossible, too large, or one that its configuration refuses.
        """
        config = _config_dict(source)
        family = family_of(config)
        config = {**family.defaults, **config}
        names = {**family.config_names, "vocab_size": "vocab_size"}
        numbers: dict[str, Any] = {name: config.get(key) for name, key in names.items()}
        for name, key in names.items():
            if numbers[name] is not None or name not in ("num_kv_heads", "head_dim"):
                _check_size(key, numbers[name], LARGEST[name])
        if numbers.get("num_kv_heads") is None:
            numbers["num_kv_heads"] = numbers["num_heads"]
        if numbers.get("head_dim") is None:
            numbers["head_dim"] = numbers["hidden_size"] // numbers["num_heads"]
        tied = _flag(config, "tie_word_embeddings")
        switches = [name for name in family.optional_parameters if _is_on(config, name)]
        shape = cls(
            model_type=family.model_type,
            tied_embeddings=tied,
            switches=tuple(sorted(switches)),
            **numbers,
        )
        if reason := shape.heads_refusal(shape.num_heads, shape.num_kv_heads, shape.hidden_size):
            raise BadInput(reason)
        return shape

    @property
    def family(self) -> Family:
        """The table that says where the parts are."""
        return FAMILIES[self.model_type]

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key-value head."""
        return self.num_heads > self.num_kv_heads

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def layer_period(self) -> int:
        """How many neighbouring layers are kept or removed together; see `Family.layer_period`."""
        period = self.family.layer_period
        return 1 if self.num_layers % period else period

    def axis_sizes(self) -> dict[Axis, int]:
        """The size of every axis that a parameter can have."""
        return with_stacked(
            {
                "vocab": self.vocab_size,
                "hidden": self.hidden_size,
                "query": self.num_heads * self.head_dim,
                "key": self.num_kv_heads * self.head_dim,
                "head_dim": self.head_dim,
                "intermediate": self.intermediate_size,
            }
        )

    def num_parameters(self) -> int:
        """The number of parameters, a tied matrix counted once; no weights are needed."""
        sizes = self.axis_sizes()
        outside = count_parameters(self.family.global_table(tied=self.tied_embeddings), sizes)
        layer = count_parameters(self.family.layer_table(self.switches), sizes)
        return int(outside + self.num_layers * layer)

    def num_embedding_parameters(self) -> int:
        """The number of parameters of input and output matrix, a tied matrix counted once."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    def pruned_to(self, **target: int) -> Self:
        """The shape with some dimensions made smaller.

        Heads: each kept key-value head keeps num_heads / num_kv_heads of its query heads, so that
        quotient must be whole and no larger than the source's.

        Args:
            target: any of num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads.
                What is not named stays; where only one of the two numbers of heads is named, the
                number of query heads per key-value head stays.

        Raises:
            BadInput: a dimension is unknown, no whole number, below 1, above the source's, not
                reachable, or refused by the family's configuration. The message names it and the
                nearest shapes that work.
        """
        for name, value in target.items():
            if name not in PRUNABLE:
                raise BadInput(f"{name!r} cannot be pruned; name any of {', '.join(PRUNABLE)}")
            _check_size(name, value, LARGEST[name])
            if value > getattr(self, name):
                raise BadInput(
                    f"{name} {value} is larger than the source's {getattr(self, name)}; "
                    f"give at most {getattr(self, name)}"
                )
        self._check_layers(target.get("num_layers", self.num_layers))
        group = self.queries_per_group
        heads, groups = target.get("num_heads"), target.get("num_kv_heads")
        if heads is None:
            groups = self.num_kv_heads if groups is None else groups
            heads = groups * group
        # In multi-head attention every query head has a key-value head of its own, which goes with
        # it. In grouped-query attention whole groups go unless the target names both numbers: each
        # group that stays then keeps the same, smaller number of its query heads.
        reason = ""
        if groups is None:
            groups = max(1, heads // group)
            if heads % group:
                reason = (
                    f"num_heads {heads} is no multiple of the {group} query heads that a key-value "
                    "head has; name num_kv_heads too"
                )
        wanted: dict[str, Any] = {**target, "num_heads": heads, "num_kv_heads": groups}
        hidden = target.get("hidden_size", self.hidden_size)
        if reason := reason or self.heads_refusal(heads, groups, hidden):
            raise BadInput(f"{reason}; {self._nearest(target)}")
        return replace(self, **wanted)

    def _check_layers(self, layers: int) -> None:
        period = self.layer_period
        if layers % period:
            below = layers - layers % period
            nearest = " or ".join(str(n) for n in (below, below + period) if n)
            raise BadInput(
                f"num_layers {layers} is no multiple of {period}: kinds of layers alternate in "
                f"{self.model_type}, so {period} neighbours are kept or removed together; nearest "
                f"numbers that work: {nearest}"
            )

    def heads_refusal(self, heads: int, groups: int, hidden: int) -> str:
        """Say why the model cannot be pruned to such heads at such a hidden size.

        Args:
            heads: query heads wanted.
            groups: key-value heads wanted.
            hidden: hidden size wanted.

        Returns:
            The reason; empty where it can.
        """
        if heads % groups or heads // groups > self.queries_per_group:
            most = self.queries_per_group
            return (
                f"num_heads {heads} with num_kv_heads {groups} is not reachable: every kept "
                f"key-value head keeps the same number of its {most} query heads"
                if most > 1
                else f"num_kv_heads {groups} with num_heads {heads} is not reachable: every query "
                "head of the source has its own key-value head"
            )
        rule = self.family.head_rule(self.switches)
        if rule == "divide" and hidden % heads:
            return (
                f"hidden_size {hidden} is not a multiple of num_heads {heads}, as the "
                f"{self.model_type} configuration demands"
            )
        if rule == "fill" and hidden != heads * self.head_dim:
            return (
                f"hidden_size {hidden} is not num_heads {heads} x head size {self.head_dim}, as "
                f"the {self.model_type} configuration demands"
            )
        return ""

    def _nearest(self, target: Mapping[str, int]) -> str:
        """Name up to three combinations of hidden size and heads that work, the nearest first.

        Distance is measured on a logarithmic scale. What the target leaves open counts a tenth of
        what it names; the source itself is no answer.
        """
        names = ("hidden_size", "num_heads", "num_kv_heads")[: 3 if self.grouped else 2]
        rule = self.family.head_rule(self.switches)
        hidden = target.get("hidden_size", self.hidden_size)
        found: set[tuple[int, ...]] = set()
        for groups in range(1, self.num_kv_heads + 1):
            for heads in range(groups, groups * self.queries_per_group + 1, groups):
                below = hidden - hidden % heads
                widths = {
                    "free": [hidden],
                    "divide": [below, below + heads],
                    "fill": [heads * self.head_dim],
                }[rule]
                found |= {
                    (width, heads, groups)[: len(names)]
                    for width in widths
                    if 1 <= width <= self.hidden_size
                }
        found = found - {tuple(getattr(self, name) for name in names)} or found

        asked = dict(target)
        if not self.grouped and "num_kv_heads" in target:
            asked.setdefault("num_heads", target["num_kv_heads"])

        def distance(shape: tuple[int, ...]) -> float:
            return sum(
                abs(log(size / asked[name]))
                if name in asked
                else 0.1 * abs(log(size / getattr(self, name)))
                for name, size in zip(names, shape, strict=True)
            )

        nearest = [
            " ".join(f"{name} {size}" for name, size in zip(names, shape, strict=True))
            for shape in sorted(found, key=lambda shape: (distance(shape), shape))[:3]
        ]
        return f"nearest shapes that work: {', or '.join(nearest)}"

    def config_fields(self) -> dict[str, int]:
        """The dimensions by their names in a Transformers configuration."""
        names = self.family.config_names
        return {config_name: getattr(self, name) for name, config_name in names.items()}

    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Every field that differs -> (its value, the other shape's value)."""
        own, others = asdict(self), asdict(other)
        return {name: (own[name], others[name]) for name in own if own[name] != others[name]}

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object; `from_dict` reads it."""
        return asdict(self) | {"switches": list(self.switches)}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the shape that `to_dict` wrote.

        Raises:
            BadInput: a field is missing, unknown or impossible.
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


def _check_size(name: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"{name} must be a whole number, not {shown(value)}")
    if value < 1:
        raise BadInput(f"{name} must be at least 1, not {value}")
    if value > largest:
        raise BadInput(f"{name} must be at most {largest:,}, not {shown(value)}")


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):  # the text "false" would count as true
        raise BadInput(f"{name} must be true or false, not {shown(value)}")
    return value


def _is_on(config: Mapping[str, Any], switch: str) -> bool:
    return _has_rope_factors(config) if switch == "longrope" else _flag(config, switch)


def _has_rope_factors(config: Mapping[str, Any]) -> bool:
    """Whether the rotary scaling has a factor per frequency, by any name that Phi-3 gave it."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")  # Transformers' order
    if not isinstance(scaling, Mapping):
        return False
    return scaling.get("rope_type", scaling.get("type")) in ("longrope", "su", "yarn")


def _config_dict(source: object) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        return read_json_object(path / "config.json" if path.is_dir() else path)
    config = getattr(source, "config", source)
    if not hasattr(config, "to_dict"):
        raise BadInput(
            "a shape is read from a Transformers model or configuration, a configuration as a "
            f"dictionary or a folder with config.json, not from {type(source).__name__}"
        )
    values: dict[str, Any] = config.to_dict()
    return values
