"""Parameters and optimizer state of a checkpoint that every rank writes its own part of.

By torch's distributed checkpoint with its safetensors storage: each file's header says where its
pieces belong, so that any number of ranks reads them, each only what it needs. The names of the
tensors are those of `tensors.py`, whose files can be read here too.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from drpruning.common.errors import BadInput

FILE_BYTES = 2**30
"""A rank's part of a file, about; it is in memory once more while it is written."""


def write_tensors(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write every rank's part of parameters and optimizer state; called by every rank.

    Args:
        folder: Is there already, the same one for every rank.
        parameters: Name -> sharded parameter, or one that is whole and the same on every rank.
        optimizer: Its state of these parameters is written under their names.

    Raises:
        OSError: A rank cannot write; raised on every rank.
    """
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{slot}"] = value
    writer = HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as error:
        raise _reason(error) from error


def read_tensors(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Put what any number of ranks wrote in place, as these ranks hold it; called by every rank.

    Raises:
        BadInput: It is of another model; nothing is changed then.
    """
    reader = HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata
    there = {n: d.size for n, d in found.items() if isinstance(d, TensorStorageMetadata)}
    here = {name: parameter.shape for name, parameter in parameters.items()}
    weights = {name: size for name, size in there.items() if ":" not in name}
    if odd := sorted(n for n in weights | here if weights.get(n) != here.get(n)):
        other, own = (list(sizes.get(odd[0], ())) or "none" for sizes in (weights, here))
        raise BadInput(
            f"{folder}: is of another model (parameter {odd[0]} has shape {other} there, {own} "
            "here); remove it to start afresh"
        )
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in parameters.items()}
    for key in there.keys() - weights.keys():
        name, _, slot = key.rpartition(":")
        parameter = parameters[name]
        tensors[key] = torch.zeros_like(parameter.detach()) if there[key] else _scalar(parameter)
        optimizer.state[parameter][slot] = tensors[key]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank
        load(tensors, storage_reader=reader)


def _scalar(parameter: nn.Parameter) -> Tensor:
    return torch.zeros((), device=parameter.device)


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> number of the file, from 1; the same on every rank."""
    ranks = torch.distributed.get_world_size()
    files, size = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + size // (FILE_BYTES * ranks)
        size += tensor.numel() * tensor.element_size()
    return files


def _reason(error: CheckpointException) -> Exception:
    """What kept the first rank that failed from writing."""
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, OSError):
        return OSError(cause.errno, f"rank {rank}: {cause.strerror or cause}")
    return RuntimeError(f"rank {rank}: {cause}")
