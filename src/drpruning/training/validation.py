"""Validation loss: of each token, of each block, of each domain."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from drpruning.data import TokenBlocks

_NOTHING = -100
"""Stands for a token that is not predicted."""


def language_modelling_loss(model: nn.Module, blocks_BT: Tensor) -> Tensor:
    """Mean next-token loss in nats over a batch of blocks [B, T]."""
    loss: Tensor = model(input_ids=blocks_BT, labels=blocks_BT, use_cache=False).loss
    return loss


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bfloat16 arithmetic over float32 weights, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def token_losses(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Loss of each next token in nats, float32 [B, T]; 0 at the last, which nothing follows.

    Transformers' own loss is the mean over all tokens of a batch, from the same logits.
    """
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    next_BT = functional.pad(ids_BT[:, 1:], (0, 1), value=_NOTHING)
    losses = functional.cross_entropy(
        logits_BTV.float().flatten(0, 1),
        next_BT.flatten(),
        ignore_index=_NOTHING,
        reduction="none",
    )
    return losses.view(ids_BT.shape)


@torch.no_grad()
def block_losses(
    model: nn.Module,
    validation: Mapping[str, TokenBlocks],
    accelerator: Accelerator,
    *,
    batch_size: int,
    precision: str = "fp32",
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, NDArray[np.float64]]:
    """The loss of each validation block of each domain.

    Args:
        model: A causal language model in evaluation mode.
        validation: Domain -> blocks; each rank takes every n-th.
        accelerator: Gives device and ranks.
        batch_size: Blocks in a forward pass.
        precision: `fp32` or `bf16`.
        on_progress: Called with the blocks done and in total (of this rank).

    Returns:
        Domain -> nats per token of each block, in the order of the blocks; the same on every rank.
        The first token of a block has no loss, since nothing comes before it.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    mine = {name: np.arange(rank, len(blocks), ranks) for name, blocks in validation.items()}
    total, done = sum(map(len, mine.values())), 0
    found = {}
    for name, blocks in validation.items():
        losses = torch.zeros(len(blocks), dtype=torch.float64, device=accelerator.device)
        largest = -(-len(blocks) // ranks)
        for start in range(0, largest, batch_size):
            rows = mine[name][start : start + batch_size]
            # A rank without blocks left runs the model too: other ranks need its shards.
            batch_BT = torch.from_numpy(blocks[rows if len(rows) else slice(0, 1)]).to(
                accelerator.device
            )
            with autocast(accelerator.device, precision):
                loss_B = token_losses(model, batch_BT).sum(1) / (batch_BT.shape[1] - 1)
            if len(rows):
                losses[torch.from_numpy(rows).to(losses.device)] = loss_B.double()
            done += len(rows)
            on_progress(done, total)
        found[name] = accelerator.reduce(losses).cpu().numpy()  # others' blocks are 0 here
    return found


def domain_losses(
    model: nn.Module,
    validation: Mapping[str, TokenBlocks],
    accelerator: Accelerator,
    *,
    batch_size: int,
    precision: str = "fp32",
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, float]:
    """Mean validation loss of each domain, in nats per token; see `block_losses`."""
    found = block_losses(
        model,
        validation,
        accelerator,
        batch_size=batch_size,
        precision=precision,
        on_progress=on_progress,
    )
    return mean_losses(found)


def mean_losses(block_loss: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Domain -> mean over its blocks, all of which have as many tokens."""
    return {name: float(losses.mean()) for name, losses in block_loss.items()}
