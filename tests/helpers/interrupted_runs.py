"""Runs that end in the middle with nothing saved, and what they are compared with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drpruning.training.trainer import Trainer
from helpers.small_runs import logged, run


class Killed(Exception):  # noqa: N818
    """Stands for the process ending with nothing saved."""


def run_until(
    values: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch, phase: str = "pretrain"
) -> Path:
    """Run a phase and leave it before a step; returns the run folder."""
    plain_step = Trainer._train_step

    def dying(self: Trainer) -> None:
        if self.step == step:
            raise Killed
        plain_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", dying)
        with pytest.raises(Killed):
            run(values, phase)
    return Path(values["output"])


def assert_same_outcome(folder: Path, whole: Path) -> None:
    assert logged(folder) == logged(whole)
    weights = [load_file(path / "model" / "model.safetensors") for path in (folder, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
