"""The training loop and its two phases, checkpoints, validation losses by domain.

Names are loaded when they are first used, so that checking a recipe does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drpruning.training.checkpoint import remove_checkpoints
    from drpruning.training.interruption import Interrupted
    from drpruning.training.parallel import place_for_evaluation
    from drpruning.training.phases import load_model, pretrain, prune
    from drpruning.training.policy import phase_policy
    from drpruning.training.provenance import commit, versions
    from drpruning.training.ranks import agreed_ratio
    from drpruning.training.reference_loss import (
        REFERENCE_LOSS_FILE,
        MeasuredModel,
        ReferenceLosses,
    )
    from drpruning.training.validation import autocast, domain_losses

_HOMES = {
    "Interrupted": "interruption",
    "MeasuredModel": "reference_loss",
    "REFERENCE_LOSS_FILE": "reference_loss",
    "ReferenceLosses": "reference_loss",
    "agreed_ratio": "ranks",
    "autocast": "validation",
    "commit": "provenance",
    "domain_losses": "validation",
    "load_model": "phases",
    "phase_policy": "policy",
    "place_for_evaluation": "parallel",
    "pretrain": "phases",
    "prune": "phases",
    "remove_checkpoints": "checkpoint",
    "versions": "provenance",
}

__all__ = [
    "REFERENCE_LOSS_FILE",
    "Interrupted",
    "MeasuredModel",
    "ReferenceLosses",
    "agreed_ratio",
    "autocast",
    "commit",
    "domain_losses",
    "load_model",
    "phase_policy",
    "place_for_evaluation",
    "pretrain",
    "prune",
    "remove_checkpoints",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
