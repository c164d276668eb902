"""The teachers of a phase: frozen models that give the target distribution of every token."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from drpruning.distillation import (
    TeacherChunk,
    TopTokens,
    chunked_logits,
    log_probabilities,
    quantise_linear_layers,
)
from drpruning.models.loading import load_model
from drpruning.pruning import MaskedModel
from drpruning.recipe import Distill, Training
from drpruning.training.distributed import shard

if TYPE_CHECKING:
    from accelerate import Accelerator

    from drpruning.training.objective import Rows

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.bfloat16}
LogitsOf = Callable[[Tensor], Callable[[slice], Tensor]]
"""Blocks [B, T] -> a function of rows of the flattened tokens to logits [n, V]."""


def load_teacher(
    path: str, settings: Distill, training: Training, accelerator: "Accelerator", field: str
) -> nn.Module:
    """Load a teacher onto this rank's device, frozen: in shards, complete, or in int8.

    Args:
        path: A folder or a name on the Hub.
        settings: Give its type and whether it is sharded.
        training: Gives the kernels, and the parallelism where `shard` is absent.
        accelerator: Devices and ranks.
        field: What named it, for messages.

    Raises:
        BadInput: It cannot be loaded.
    """
    model: nn.Module = load_model(path, field, training, DTYPES[settings.dtype])
    model.requires_grad_(False).eval()
    sharded = training.parallelism == "fsdp2" if settings.shard is None else settings.shard
    if settings.dtype == "int8":
        quantise_linear_layers(model)
    elif sharded and accelerator.num_processes > 1:
        shard(model, accelerator)
    return model.to(accelerator.device)


class Teachers:
    """One teacher or several, whose probabilities are then averaged with weights by domain."""

    def __init__(
        self,
        models: Mapping[str, LogitsOf],
        weights: Mapping[str, Mapping[str, float]],
        parameters: Mapping[str, int],
        *,
        temperature: float,
        top_k: int | None,
    ) -> None:
        """Set them up.

        Args:
            models: Name -> what gives its logits.
            weights: Name -> domain -> its weight there; they sum to 1 in a domain.
            parameters: Name -> number of parameters, for the log.
            temperature: What logits are divided by.
            top_k: How many of the likeliest tokens are given; None: the vocabulary.
        """
        self._models, self._weights = models, weights
        self.parameters = dict(parameters)
        self._temperature, self._top_k = temperature, top_k

    def targets(self, rows: "Rows") -> TeacherChunk:
        """Run every teacher's body on rows; their heads run chunk by chunk, when asked."""
        blocks_BT = rows.blocks
        with torch.autocast(blocks_BT.device.type, enabled=False):
            logits = {name: logits_of(blocks_BT) for name, logits_of in self._models.items()}
        weights = {
            name: torch.tensor(
                [self._weights[name][rows.names[i]] for i in rows.domains.tolist()],
                device=blocks_BT.device,
            ).repeat_interleave(blocks_BT.shape[1])
            for name in (logits if len(logits) > 1 else ())
        }

        @torch.no_grad()
        def target(part: slice) -> Tensor | TopTokens:
            with torch.autocast(blocks_BT.device.type, enabled=False):
                if not weights:
                    (only,) = logits.values()
                    return log_probabilities(only(part), self._temperature, self._top_k)
                mean = torch.zeros((), device=blocks_BT.device)
                for name, logits_of in logits.items():
                    found = (logits_of(part).float() / self._temperature).softmax(-1)
                    mean = mean + weights[name][part, None] * found
            return log_probabilities(mean.log(), 1.0, self._top_k)

        return target


def frozen_logits(model: nn.Module) -> LogitsOf:
    """What gives the logits of a model of its own."""

    def logits_of(blocks_BT: Tensor) -> Callable[[slice], Tensor]:
        return chunked_logits(model, input_ids=blocks_BT, use_cache=False)

    return logits_of


def unmasked_logits(
    masked: MaskedModel, inner: nn.Module, precision: Callable[[], AbstractContextManager[None]]
) -> LogitsOf:
    """What gives the logits of a masked model under masks of one, computed at once.

    They are not computed in chunks: the sampled masks are set before the trained model's own
    forward pass, and its head must not run under others in between.

    Args:
        masked: The model and its masks.
        inner: The Transformers model inside, without the wrapper of DDP.
        precision: The arithmetic of the trained model's forward pass.
    """

    @torch.no_grad()
    def logits_of(blocks_BT: Tensor) -> Callable[[slice], Tensor]:
        wrapped, training = masked.model, masked.training
        masked.model = inner
        try:
            masked.eval()
            masked.use_masks("ones")
            with precision():
                found = masked(input_ids=blocks_BT, use_cache=False).logits.flatten(0, 1)
        finally:
            masked.model = wrapped
            masked.train(training)
        return lambda rows: found[rows]

    return logits_of
