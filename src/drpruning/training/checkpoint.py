"""Checkpoints: weights, optimizer and everything small, in safetensors and JSON.

A checkpoint is a folder `PHASE-STEP` that appears whole or not at all: it is written beside its
place, synced and renamed.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drpruning.errors import BadInput

VERSION = 1


def publish(temporary: Path, final: Path) -> None:
    """Put a folder that is complete in its place, so that a crash leaves it whole or absent."""
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def save_checkpoint(
    folder: Path,
    phase: str,
    step: int,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Save one checkpoint and drop the older ones but the newest `keep`.

    Args:
        folder: The `checkpoints` folder.
        phase: `prune` or `pretrain`.
        step: Steps done.
        parameters: Name -> parameter, everything that is trained.
        optimizer: Its state of these parameters is saved under their names.
        state: JSON-able, everything else.
        keep: How many of this phase's checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{phase}-{step:08d}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    weights = {name: p.detach().contiguous() for name, p in parameters.items()}
    save_file(weights, temporary / "weights.safetensors")
    save_file(_optimizer_tensors(parameters, optimizer), temporary / "optimizer.safetensors")
    header = {"version": VERSION, "phase": phase, "step": step}
    (temporary / "state.json").write_text(json.dumps(header | dict(state)))
    final = folder / f"{phase}-{step:08d}"
    publish(temporary, final)
    for old in list_checkpoints(folder, phase)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path, phase: str) -> list[Path]:
    """The complete checkpoints of a phase, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(rf"{phase}-\d{{8,}}", p.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put a checkpoint's weights and optimizer state in place; returns the rest.

    Raises:
        BadInput: It is of another version, or of another model.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    if state.get("version") != VERSION:
        raise BadInput(f"{path}: version {state.get('version')} of a checkpoint, not {VERSION}")
    weights = load_file(path / "weights.safetensors")
    if weights.keys() != parameters.keys():
        odd = sorted(weights.keys() ^ parameters.keys())[0]
        raise BadInput(f"{path}: is of another model (parameter {odd}); remove it to start afresh")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, slot = key.rpartition(":")
        parameter = parameters[name]
        optimizer.state[parameter][slot] = value.to(parameter.device)
    return state


def remove_checkpoints(folder: Path, phase: str) -> None:
    """Drop a phase's checkpoints, once its result is safe."""
    for path in list_checkpoints(folder, phase):
        shutil.rmtree(path)
