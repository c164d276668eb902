"""Pruning plans: which parts of a model stay. Plain data, importable without torch."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, parse_json
from drpruning.pruning.families import STACKED, Axis
from drpruning.pruning.shapes import PRUNABLE, ModelShape

DIMENSIONS = {
    "layer": "num_layers",
    "hidden": "hidden_size",
    "group": "num_kv_heads",
    "head": "num_heads",
    "intermediate": "intermediate_size",
}
"""Granularity, a kind of part that stays or is cut -> the dimension of a shape that counts it.
`group` is a key-value head and exists only with grouped-query attention."""

Indices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which parts of a source model stay. All indices are the source's, ascending.

    Attributes:
        source: shape of the model that is cut.
        target: shape of what is left.
        layers: kept layers.
        hidden: kept dimensions of the residual stream.
        kv_groups: for each kept layer its kept key-value heads.
        heads: for each kept layer its kept query heads, the same number in each kept group.
        intermediate: for each kept layer its kept feed-forward dimensions.
    """

    source: ModelShape
    target: ModelShape
    layers: Indices
    hidden: Indices
    kv_groups: tuple[Indices, ...]
    heads: tuple[Indices, ...]
    intermediate: tuple[Indices, ...]

    def __post_init__(self) -> None:
        source, target = self.source, self.target
        if set(source.differences(target)) - set(PRUNABLE):
            raise BadInput("the plan's source and target differ in more than their prunable sizes")
        _check("layers", self.layers, source.num_layers, target.num_layers)
        _check("hidden", self.hidden, source.hidden_size, target.hidden_size)
        for name, size, count in (
            ("kv_groups", source.num_kv_heads, target.num_kv_heads),
            ("heads", source.num_heads, target.num_heads),
            ("intermediate", source.intermediate_size, target.intermediate_size),
        ):
            rows = getattr(self, name)
            if len(rows) != target.num_layers:
                raise BadInput(f"the plan's {name} must have one entry for each kept layer")
            for layer, indices in zip(self.layers, rows, strict=True):
                _check(f"{name} of layer {layer}", indices, size, count)
        self._check_groups()

    def _check_groups(self) -> None:
        size, count = self.source.queries_per_group, self.target.queries_per_group
        for layer, groups, heads in zip(self.layers, self.kv_groups, self.heads, strict=True):
            expected = sorted(groups * count)
            if [head // size for head in heads] != expected:
                raise BadInput(
                    f"the plan's heads of layer {layer} must be {count} in each kept key-value head"
                )

    @property
    def removed_layers(self) -> list[int]:
        """Layers of the source that are removed."""
        return sorted(set(range(self.source.num_layers)) - set(self.layers))

    def indices(self, axis: Axis, position: int | None = None) -> Indices | None:
        """The indices that stay along an axis of a parameter.

        Args:
            axis: axis of the parameter.
            position: place of the parameter's layer among the kept ones, for axes within a layer.

        Returns:
            Indices into the source, or None where the axis is not cut.
        """
        if axis in {"vocab", "head_dim"}:
            return None
        if axis == "hidden":
            return self.hidden
        if position is None:
            raise ValueError(f"the axis {axis} lies within a layer")
        if axis == "intermediate":
            return self.intermediate[position]
        width = self.source.head_dim
        if axis == "head_triples":
            return _blocks(self.heads[position], 3 * width)
        if axis in STACKED:
            sizes, start, rows = self.source.axis_sizes(), 0, []
            for part in STACKED[axis]:
                rows += [start + index for index in self.indices(part, position) or ()]
                start += sizes[part]
            return tuple(rows)
        return _blocks((self.heads if axis == "query" else self.kv_groups)[position], width)

    def similarity(self, other: Self) -> dict[str, float]:
        """The share of the source's parts on which two plans decide alike (Appendix B.1).

        A head or feed-forward dimension is kept where it is part of the cut model, so those of a
        removed layer count as removed.

        Args:
            other: a plan for the same source.

        Returns:
            Granularity -> share in [0, 1], for every granularity that one of the plans cuts.

        Raises:
            BadInput: the plans have different sources.
        """
        if differences := self.source.differences(other.source):
            raise BadInput(f"the plans have different sources: {_pairs(differences)}")
        mine, theirs, sizes = self._kept_parts(), other._kept_parts(), self._part_counts()
        cut = self._cut() | other._cut()
        return {
            name: 1 - _disagreements(mine[name], theirs[name]) / sizes[name]
            for name in DIMENSIONS
            if name in cut
        }

    def _kept_parts(self) -> dict[str, dict[int, set[int]]]:
        """Granularity -> kept layer -> the indices that stay.

        What does not belong to a layer (layers, hidden dimensions) is entered under layer 0.
        """

        def within(rows: Sequence[Indices]) -> dict[int, set[int]]:
            return dict(zip(self.layers, map(set, rows), strict=True))

        return {
            "layer": {0: set(self.layers)},
            "hidden": {0: set(self.hidden)},
            "group": within(self.kv_groups),
            "head": within(self.heads),
            "intermediate": within(self.intermediate),
        }

    def _part_counts(self) -> dict[str, int]:
        layers = self.source.num_layers
        return {
            "layer": layers,
            "hidden": self.source.hidden_size,
            "group": layers * self.source.num_kv_heads,
            "head": layers * self.source.num_heads,
            "intermediate": layers * self.source.intermediate_size,
        }

    def _cut(self) -> set[str]:
        changed = self.source.differences(self.target)
        cut = {name for name, dimension in DIMENSIONS.items() if dimension in changed}
        return cut if self.source.grouped else cut - {"group"}

    def to_json(self) -> str:
        """Write the plan as one line of JSON.

        Wide sets of indices are hexadecimal bit masks, whose lowest bit is index 0.
        """
        return json.dumps(
            {
                "version": 1,
                "source": self.source.to_dict(),
                "target": self.target.to_dict(),
                "layers": self.layers,
                "hidden": _to_hex(self.hidden),
                "kv_groups": self.kv_groups,
                "heads": self.heads,
                "intermediate": [_to_hex(row) for row in self.intermediate],
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the plan that `to_json` wrote.

        Raises:
            BadInput: the text is no JSON, of another version, or has indices that do not fit the
                shapes.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise BadInput(f"the plan is not valid JSON: {error}") from error
        if not isinstance(data, dict) or data.get("version") != 1:
            raise BadInput("the plan is not a JSON object of version 1")
        try:
            return cls(
                source=ModelShape.from_dict(data["source"]),
                target=ModelShape.from_dict(data["target"]),
                layers=tuple(data["layers"]),
                hidden=_from_hex(data["hidden"]),
                kv_groups=tuple(map(tuple, data["kv_groups"])),
                heads=tuple(map(tuple, data["heads"])),
                intermediate=tuple(_from_hex(row) for row in data["intermediate"]),
            )
        except KeyError as error:
            raise BadInput(f"the plan lacks {error.args[0]}") from error
        except TypeError as error:
            raise BadInput(f"the plan has an entry of the wrong type: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as a JSON file, which appears complete or not at all."""
        atomic_write(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan that `save` wrote.

        Raises:
            BadInput: the file cannot be read or holds no valid plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read the plan {path}: {error}") from error
        try:
            return cls.from_json(text)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    def __str__(self) -> str:
        source, target = self.source, self.target
        before, after = source.num_parameters(), target.num_parameters()
        lines = [f"{source.model_type}: {before:,} -> {after:,} parameters ({after / before:.1%})"]
        for name in PRUNABLE:
            old, new = getattr(source, name), getattr(target, name)
            lines.append(f"  {name:<18} {old:>6} -> {new:<6} {new / old:.0%} stay")
        lines.append(f"  layers removed: {', '.join(map(str, self.removed_layers)) or 'none'}")
        return "\n".join(lines)


def _blocks(indices: Indices, width: int) -> Indices:
    """The indices that blocks of this width cover."""
    return tuple(index * width + offset for index in indices for offset in range(width))


def _disagreements(one: dict[int, set[int]], other: dict[int, set[int]]) -> int:
    nothing: set[int] = set()
    layers = one.keys() | other.keys()
    return sum(len(one.get(i, nothing) ^ other.get(i, nothing)) for i in layers)


def _check(name: str, indices: Indices, size: int, count: int) -> None:
    if not all(type(index) is int for index in indices):
        raise BadInput(f"the plan's {name} must be whole numbers")
    outside = any(not 0 <= index < size for index in indices)
    if outside or list(indices) != sorted(set(indices)):
        raise BadInput(f"the plan's {name} must be ascending indices below {size}, none twice")
    if len(indices) != count:
        raise BadInput(f"the plan's {name} has {len(indices)} entries where the target has {count}")


def _to_hex(indices: Indices) -> str:
    return format(sum(1 << index for index in indices), "x")


def _from_hex(text: object) -> Indices:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]+", text):
        raise BadInput(f"a bit mask in the plan must be a hexadecimal string, not {text!r}")
    bits = format(int(text, 16), "b")
    return tuple(index for index, bit in enumerate(reversed(bits)) if bit == "1")


def _pairs(differences: dict[str, tuple[object, object]]) -> str:
    return ", ".join(f"{name} {own} and {other}" for name, (own, other) in differences.items())
