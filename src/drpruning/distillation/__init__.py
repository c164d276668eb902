"""Distillation: training a student towards the distributions of a teacher (a torch-only room)."""

from drpruning.distillation.head import chunked_logits
from drpruning.distillation.int8 import Int8Linear, quantise_linear_layers
from drpruning.distillation.loss import (
    DistillationLoss,
    TeacherChunk,
    TopTokens,
    chunk_size,
    distillation_loss,
    log_probabilities,
    next_tokens,
)

__all__ = [
    "DistillationLoss",
    "Int8Linear",
    "TeacherChunk",
    "TopTokens",
    "chunk_size",
    "chunked_logits",
    "distillation_loss",
    "log_probabilities",
    "next_tokens",
    "quantise_linear_layers",
]
