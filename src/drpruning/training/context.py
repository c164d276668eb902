"""What a phase of training works with besides its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from drpruning.common.console import Reporter
from drpruning.data import PreparedData
from drpruning.recipe import Phase, Training
from drpruning.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainerContext:
    """What a phase works with besides its model."""

    settings: Phase
    training: Training
    data: PreparedData
    folder: RunFolder
    accelerator: Accelerator
    reporter: Reporter
    identity: Mapping[str, Any]
    """What a checkpoint must be of; see `run_identity`."""
