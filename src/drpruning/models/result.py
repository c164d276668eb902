"""Writing of a model as a Hugging Face folder that any reader of published models takes."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_folder, dumps, read_json_object
from drpruning.models.auxiliary_files import (
    CARD,
    auxiliary_folder,
    card_metadata,
    copy_auxiliary_files,
)
from drpruning.models.files import INDEX, LARGEST_CONFIG, weight_files
from drpruning.models.layout import check_layout
from drpruning.models.published_config import published_config
from drpruning.models.weight_headers import read_header
from drpruning.pruning import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_SHARD = "5GB"
"""Size of a file of weights, at most, as the Hub's own tools have it."""
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float32}
"""Type in a safetensors header -> type of a result; nothing here computes in float64."""
_ORIGINAL_DTYPE = "original_dtype"
"""Key in the metadata of weight files: the type that the source's weights had. An intermediate
model is written in float32, so that no training is rounded away; what is made of it should be of
the source's type all the same."""


@dataclass(frozen=True)
class Origin:
    """What a result takes over from the model that it is made from, and from its tokenizer.

    Attributes:
        folder: Of the model; for a name on the Hub, its snapshot in the cache.
        tokenizer: Folder of the tokenizer.
        config: Content of the model's config.json.
        card: Its fields for the front matter of a new model card.
        stored_dtype: Type of most of its weights.
        original_dtype: Type of the weights of the published model that it was made from, where it
            is itself a result; otherwise `stored_dtype`.
    """

    folder: Path
    tokenizer: Path
    config: dict[str, Any]
    card: dict[str, Any]
    stored_dtype: torch.dtype
    original_dtype: torch.dtype

    @classmethod
    def of(cls, source: str, tokenizer: str | None = None, field: str = "model.source") -> Self:
        """Look at a model's files. Of a model on the Hub the weights must be in the cache.

        Args:
            source: A folder, or a name on the Hub.
            tokenizer: The same for its tokenizer; absent: the source's.
            field: What named the model, for messages.

        Raises:
            BadInput: The config.json, the weights or the folder cannot be read.
        """
        folder = auxiliary_folder(source, field)
        stored, original = _dtypes(weight_files(folder, field), field)
        return cls(
            folder=folder,
            tokenizer=auxiliary_folder(tokenizer, "model.tokenizer") if tokenizer else folder,
            config=read_json_object(folder / "config.json", field, LARGEST_CONFIG),
            card=card_metadata(source, folder),
            stored_dtype=stored,
            original_dtype=original,
        )

    def write_small_files(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        """Write config.json, tokenizer, licence and generation settings of a result.

        Args:
            folder: Where to.
            config: Content of config.json; absent: the source's.
        """
        text = dumps(self.config if config is None else config, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        copy_auxiliary_files(self.folder, self.tokenizer, folder)

    def result_dtype(self, choice: str) -> torch.dtype:
        """The type of a final result: a type by name, or for `auto` the original one."""
        found = self.original_dtype if choice == "auto" else getattr(torch, choice)
        assert isinstance(found, torch.dtype)  # noqa: S101 - the recipe allows names of types
        return found


def save_model(
    model: "PreTrainedModel",
    origin: Origin,
    folder: Path,
    card: str = "",
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = LARGEST_SHARD,
) -> None:
    """Write a Hugging Face folder, complete or not at all; the model is left as it is.

    Args:
        model: Of a known family, with its parameters in place.
        origin: What it was made from.
        folder: To be written.
        card: Its README.md; empty: none.
        dtype: Of the weights in the files; absent: the model's.
        max_shard_size: Size of a file of weights, at most, such as 5GB.

    Raises:
        BadInput: A weight is too large for the type.
        LayoutError: Another program could not read what was written.
        OSError: The file system refuses.
    """
    dtype = dtype or model.dtype
    with atomic_folder(folder) as temporary, storage_errors():
        _write_weights(model, temporary, dtype, max_shard_size, origin.original_dtype)
        config = published_config(origin.config, model, dtype_name(dtype))
        origin.write_small_files(temporary, config)
        check_layout(temporary)
        if card:
            (temporary / CARD).write_text(card, encoding="utf-8")
        mode = (temporary / "config.json").stat().st_mode
        for file in temporary.glob("*.safetensors"):
            file.chmod(mode)  # safetensors lets the owner alone read its files


def _write_weights(
    model: "PreTrainedModel",
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str,
    original_dtype: torch.dtype,
) -> None:
    """Write safetensors files with published names, and their index where there are several.

    Shards are planned without memory and filled one by one, so that at most one of them is held in
    the new type beside the model.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    family = ModelShape.of(model).family
    # A matrix that is input and output at once comes once, under the input's name, as in published
    # files.
    tensors = {family.file_name(n): p.detach() for n, p in model.named_parameters()}
    outline = {n: torch.empty(p.shape, dtype=dtype, device="meta") for n, p in tensors.items()}
    shards = split_torch_state_dict_into_shards(outline, max_shard_size=max_shard_size)
    metadata = {"format": "pt"}
    if original_dtype != dtype:
        metadata[_ORIGINAL_DTYPE] = dtype_name(original_dtype)
    for file, members in shards.filename_to_tensors.items():
        shard = {name: tensors[name].to("cpu", dtype).contiguous() for name in members}
        if dtype == torch.float16:
            _check_finite(shard)
        save_file(shard, folder / file, metadata=metadata)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX).write_text(dumps(index, indent=2) + "\n", encoding="utf-8")


def _check_finite(shard: dict[str, torch.Tensor]) -> None:
    """Refuse weights beyond float16, whose largest number is 65,504, in place of infinities."""
    if lost := [name for name, tensor in shard.items() if not tensor.isfinite().all()]:
        raise BadInput(
            f"model.dtype: float16 cannot hold the weights of {lost[0]}; write bfloat16 or float32 "
            "and start the same command again"
        )


def _dtypes(files: list[Path], field: str) -> tuple[torch.dtype, torch.dtype]:
    """The type of most weights in files, and the one that their metadata name as the original."""
    sizes: Counter[torch.dtype] = Counter()
    names = {dtype_name(dtype): dtype for dtype in _DTYPES.values()}
    original = None
    for file in files:
        header = read_header(file, field)
        original = original or names.get(header.metadata.get(_ORIGINAL_DTYPE, ""))
        for tensor in header.tensors:
            if (dtype := _DTYPES.get(tensor.dtype)) is not None:
                sizes[dtype] += prod(tensor.shape)
    stored = max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
    return stored, original or stored


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type as config.json has it, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise `OSError` for a full or failing disk also where safetensors found it."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error
