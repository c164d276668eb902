"""Parameters and optimizer state of a checkpoint where every rank holds them whole."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from drpruning.common.errors import BadInput
from drpruning.models.loading import storage_errors

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


def write_tensors(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write parameters and optimizer state into a folder; called by every rank, the first writes.

    Args:
        folder: Is there already.
        parameters: Name -> parameter, everything that is trained.
        optimizer: Its state of these parameters is written under their names.

    Raises:
        OSError: They cannot be written.
    """
    if not PartialState().is_main_process:
        return
    weights = {name: p.detach().contiguous() for name, p in parameters.items()}
    moments = {
        f"{name}:{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    with storage_errors():
        save_file(weights, folder / WEIGHTS_FILE)
        save_file(moments, folder / OPTIMIZER_FILE)


def read_tensors(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Put what `write_tensors` wrote in place; called by every rank, one tensor at a time.

    Raises:
        BadInput: It is of another model; nothing is changed then.
    """
    with ExitStack() as stack:
        weights, moments = (
            stack.enter_context(safe_open(folder / name, "pt"))
            for name in (WEIGHTS_FILE, OPTIMIZER_FILE)
        )
        there = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        here = {name: list(parameter.shape) for name, parameter in parameters.items()}
        if odd := sorted(n for n in there | here if there.get(n) != here.get(n)):
            raise BadInput(
                f"{folder}: is of another model (parameter {odd[0]} has shape "
                f"{there.get(odd[0], 'none')} there, {here.get(odd[0], 'none')} here); remove it "
                "to start afresh"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights.get_tensor(name))
        for key in moments.keys():  # noqa: SIM118
            name, _, slot = key.rpartition(":")
            value: Tensor = moments.get_tensor(key)
            optimizer.state[parameters[name]][slot] = value.to(parameters[name].device)
