"""What a phase of training works with besides its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from drpruning.common.console import Reporter
from drpruning.data import PreparedData
from drpruning.recipe import Phase, Training
from drpruning.runs.folder import RunFolder
from drpruning.training.objective import LanguageModelling


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
    untrained_reference_loss: Mapping[str, float] = field(default_factory=dict)
    """Reference losses in nats of domains that are only evaluated, for the record."""
    teacher_loss: Mapping[str, float] = field(default_factory=dict)
    """Domain -> nats of the teacher, where known: what the model's losses are shown beside."""
    objective: LanguageModelling = field(default_factory=LanguageModelling)
    """What is minimised."""
