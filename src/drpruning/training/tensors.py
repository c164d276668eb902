"""Parameters and optimizer state of a checkpoint: every rank writes and reads its own part.

By torch's distributed checkpoint with its safetensors storage, on one rank as on many. Each file's
header says where its pieces belong, so any number of ranks, with sharded or replicated parameters,
reads what any other number wrote, one tensor at a time, and reading runs no code from the files.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
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
"""About the size of a file; a file is in memory once more while it is written."""


def write_tensors(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write every rank's part of parameters and optimizer state; called by every rank.

    Args:
        folder: An existing folder, the same one for every rank.
        parameters: Name -> parameter, sharded, or replicated with the same value on every rank.
        optimizer: Its state of these parameters is written as `NAME:SLOT`.

    Raises:
        OSError: A rank cannot write; raised on every rank.
    """
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{slot}"] = value
    writer = HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
    with _one_rank_is_enough():
        save(tensors, storage_writer=writer)


def read_tensors(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Load what any number of ranks wrote into these parameters; called by every rank.

    Raises:
        BadInput: The checkpoint is of another model; nothing is changed then.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    sizes = {n: d.size for n, d in stored.items() if isinstance(d, TensorStorageMetadata)}
    weights = {name: size for name, size in sizes.items() if ":" not in name}
    own = {name: parameter.shape for name, parameter in parameters.items()}
    if odd := sorted(n for n in weights | own if weights.get(n) != own.get(n)):
        saved, expected = (list(s[odd[0]]) if odd[0] in s else "none" for s in (weights, own))
        raise BadInput(
            f"{folder}: is of another model (parameter {odd[0]} has shape {saved} in the "
            f"checkpoint, {expected} in the model); remove it to start from scratch"
        )
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in parameters.items()}
    for key in sizes.keys() - weights.keys():
        name, _, slot = key.rpartition(":")
        value = parameters[name].detach()
        # A slot is either as large as its parameter, and sharded alike, or one number (`step`).
        tensors[key] = (
            torch.zeros_like(value) if sizes[key] else torch.zeros((), device=value.device)
        )
        optimizer.state[parameters[name]][slot] = tensors[key]
    with _one_rank_is_enough():
        load(tensors, storage_reader=reader)


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> number of the file, from 1; the same on every rank."""
    ranks = PartialState().num_processes
    files, size = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + size // (FILE_BYTES * ranks)
        size += tensor.numel() * tensor.element_size()
    return files


@contextmanager
def _one_rank_is_enough() -> Iterator[None]:
    """Without a process group torch warns, and works; its failures come as what caused them.

    Raises:
        OSError: The first rank that failed could not write.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if isinstance(cause, OSError):
            which = f"rank {rank}: " if PartialState().num_processes > 1 else ""
            raise OSError(cause.errno, f"{which}{cause.strerror or cause}") from error
        if isinstance(cause, KeyboardInterrupt):  # torch catches this too
            raise cause from None
        raise RuntimeError(f"rank {rank}: {cause}") from error
