"""Distillation: training a student towards the distributions of a teacher (a torch-only room)."""

from drpruning.distillation.loss import (
    DistillationLoss,
    TeacherChunk,
    TopTokens,
    distillation_loss,
    log_probabilities,
)

__all__ = [
    "DistillationLoss",
    "TeacherChunk",
    "TopTokens",
    "distillation_loss",
    "log_probabilities",
]
