"""Folders in which a recipe would run, one thing in them spoiled, and what the command says."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOMAINS = {"numbers": 0.6, "colours": 0.3, "animals": 0.1}
RECIPE: dict[str, Any] = {
    "model": {
        "source": "model",
        "target": {"num_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2},
    },
    "data": {
        "sequence_length": 16,
        "validation_blocks": 6,
        "workers": 1,
        "domains": {name: {"source": f"{name}.jsonl", "share": s} for name, s in DOMAINS.items()},
    },
    "prune": {"steps": 4, "global_batch": 8, "evaluate_every": 2, "mask_samples": 2},
    "pretrain": {"steps": 2, "global_batch": 8, "evaluate_every": 2},
    "training": {"precision": "fp32"},
    "output": "out",
}
"""A recipe that runs in a `Place`; every path in it is relative."""


class Place:
    """A folder with recipe.yaml, a model and the text of three domains."""

    def __init__(self, folder: Path, text: Path, model: Path) -> None:
        self.folder = folder
        self.recipe: dict[str, Any] = json.loads(json.dumps(RECIPE))
        shutil.copytree(text, folder)
        shutil.copytree(model, folder / "model")
        self.save()

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def save(self) -> None:
        """Write the recipe as it is now."""
        self.write("recipe.yaml", yaml.safe_dump(self.recipe, sort_keys=False))

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, its folders as well."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    def tree(self) -> dict[str, bytes | None]:
        """Every file with its bytes and every folder, by name."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(self.folder.rglob("*"))
        }


Spoil = Callable[[Place], object]


@dataclass(frozen=True)
class Row:
    """One wrong input: what is spoiled, the command line, and words that its message must have."""

    name: str
    spoil: Spoil
    words: tuple[str, ...]
    arguments: tuple[str, ...] = ("run", "recipe.yaml")


def field(path: str, value: Any) -> Spoil:
    """Give a field of the recipe another value; `...` takes it out."""

    def spoil(place: Place) -> None:
        section = place.recipe
        *parents, last = path.split(".")
        for key in parents:
            section = section.setdefault(key, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
        place.save()

    return spoil


def line(text: str) -> Spoil:
    """Append a line to the recipe."""
    return lambda place: place.write("recipe.yaml", (place / "recipe.yaml").read_text() + text)


def file(name: str, content: str | bytes) -> Spoil:
    """Write a file, or another content into one."""
    return lambda place: place.write(name, content)


def both(*parts: Spoil) -> Spoil:
    """Spoil several things."""
    return lambda place: [part(place) for part in parts]


def config(**values: Any) -> Spoil:
    """Change fields of the model's config.json."""

    def spoil(place: Place) -> None:
        there = json.loads((place / "model/config.json").read_text())
        place.write("model/config.json", json.dumps(there | values))

    return spoil


def shape(target: Mapping[str, Any], **values: Any) -> Spoil:
    """Plan a model by its shape alone, towards a target."""
    base = {
        "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }  # fmt: skip
    return field("model", {"shape": base | values, "target": dict(target)})


def nothing(_place: Place) -> None:
    """Spoil nothing: the command line itself is wrong."""


def complaint(row: Row, status: int, stderr: str) -> str:
    """The one message of a refused command; asserts that it is as messages are to be."""
    message = " ".join(stderr.split())
    assert status == 2, f"{row.name}: {status}: {stderr[-300:]}"
    assert "Traceback" not in stderr, stderr[-2000:]
    assert stderr.count("drprune: ") == 1 or stderr.count("Usage: ") == 1, stderr[-2000:]
    missing = [word for word in row.words if word not in message]
    assert not missing, f"{row.name}: {missing} not in {message[-2000:]}"
    return message
