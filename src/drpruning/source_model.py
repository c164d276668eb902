"""The source model as its files describe it: shape, tokenizer, weights; nothing is loaded."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drpruning.errors import BadInput
from drpruning.pruning import ModelShape
from drpruning.recipe import Recipe

LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, at most (as the format's own library has it)."""


def source_shape(recipe: Recipe, config: dict[str, Any]) -> ModelShape:
    """Shape of the source model.

    Args:
        recipe: Its `model.shape`, where given, must agree.
        config: What `source_config` found.

    Raises:
        BadInput: The model is none that can be used, or not of the shape that the recipe gives.
    """
    found, shape = ModelShape.of(config), recipe.model.shape
    if shape is not None and ModelShape.of(shape) != found:
        raise BadInput(f"model.shape: is not the shape of {recipe.model.source}; leave it out")
    return found


def source_config(recipe: Recipe) -> dict[str, Any]:
    """The source's config.json, or `model.shape` where that is given and the model is not here.

    Raises:
        BadInput: There is neither.
    """
    source = recipe.model.source
    path = Path(str(source)) / "config.json"
    if not path.is_file():
        if recipe.model.shape is not None:
            return recipe.model.shape
        if source is None or Path(source).exists() or source.count("/") > 1:
            raise BadInput(
                f"model.source: {source} is no folder with a config.json, nor a Hub name"
            )
        path = _hub_config(source)
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"model.source: {path} is not JSON: {error}") from None
    return config


def _hub_config(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise BadInput(
            f"model.source: {name} is no folder here, and looking it up on the Hub needs "
            "`pip install drpruning[train]`"
        ) from None
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # the Hub client has a dozen unrelated error types
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"model.source: {name} is no folder here and not to be had from the Hub ({reason}); "
            "give a folder, or model.shape to plan without it"
        ) from None


def check_tokenizer(recipe: Recipe, shape: ModelShape) -> None:
    """Refuse a local tokenizer that is missing or has ids the model lacks.

    Raises:
        BadInput: So.
    """
    folder = Path(str(recipe.model.source))
    if not folder.is_dir():
        return
    file = folder / "tokenizer.json"
    if not file.is_file():
        if any(folder.glob("*token*")) or any(folder.glob("*.model")):
            return
        raise BadInput(f"model.source: {folder} has no tokenizer (tokenizer.json)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        largest = max([*ids, *(token["id"] for token in content.get("added_tokens", []))])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"model.source: {file} is not a tokenizer file") from None
    if largest >= shape.vocab_size:
        raise BadInput(
            f"model.source: the tokenizer in {folder} does not fit the model: its largest id is "
            f"{largest}, the model's vocabulary has {shape.vocab_size} entries"
        )


def check_weights(recipe: Recipe, shape: ModelShape) -> None:
    """Refuse local weights that are not those of the config, from the headers of their files.

    Raises:
        BadInput: No safetensors, a file that is torn, or a parameter missing, unknown or of another
            size.
    """
    folder = Path(str(recipe.model.source))
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"model.source: {folder} has no safetensors weights; convert them first")
    found = dict(pair for file in files for pair in _header(file))
    tied = shape.tied_embeddings
    table = shape.family.full_table(shape.num_layers, shape.switches, tied=tied)
    sizes = shape.axis_sizes()
    for name, axes in table.items():
        expected = [sizes[axis] for axis in axes]
        if name not in found:
            raise BadInput(f"model.source: {folder} has no weights for {name}")
        if found[name] != expected:
            raise BadInput(
                f"model.source: {name} has shape {found[name]} in {folder}, where its config.json "
                f"says {expected}"
            )
    head = f"{shape.family.output}.weight"
    allowed = {*table, head} if tied else {*table}
    if odd := [n for n in found if n not in allowed and not n.endswith("rotary_emb.inv_freq")]:
        raise BadInput(f"model.source: {folder} has weights that its config.json lacks: {odd[0]}")


def _header(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor in a safetensors file that is as long as it says."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST_HEADER:
                raise ValueError
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = [(n, list(e["shape"]), e["data_offsets"][1]) for n, e in header.items()]
        complete = size == 8 + length + max(end for _, _, end in entries)
    except (ValueError, KeyError, TypeError, struct.error):
        complete = False
    if not complete:
        raise BadInput(f"model.source: {file} is not a whole safetensors file; fetch it again")
    yield from ((name, shape) for name, shape, _ in entries)
