"""Which checkpoints a phase takes for its own, and which it removes."""

import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator

from drpruning.common.errors import BadInput
from drpruning.recipe import Checkpoint
from drpruning.training.checkpoint import CheckpointManager


def manager(folder: Path, phase: str, keep: int) -> CheckpointManager:
    return CheckpointManager(folder, phase, Checkpoint(keep=keep), Accelerator(cpu=True))


def save(checkpoints: CheckpointManager, *steps: int) -> None:
    for step in steps:
        error = checkpoints.save(step, dict, lambda folder: (folder / "weights").touch())
        assert error is None


def test_a_checkpoint_of_another_phase_is_not_taken_for_its_own(tmp_path: Path) -> None:
    save(manager(tmp_path, "pretrain", 2), 3)
    shutil.copytree(tmp_path / "pretrain-00000003", tmp_path / "prune-00000003")
    with pytest.raises(BadInput, match="phase pretrain, not prune"):
        manager(tmp_path, "prune", 2).latest()


def test_what_was_just_saved_stays_though_later_ones_exist(tmp_path: Path) -> None:
    save(manager(tmp_path, "prune", 9), 1, 2, 4, 5)
    save(manager(tmp_path, "prune", 2), 3)
    assert {int(path.name[-8:]) for path in tmp_path.iterdir()} == {2, 3, 4, 5}
