"""Validation loss of each domain."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from drpruning.data import TokenBlocks


def language_modelling_loss(model: nn.Module, blocks_BT: Tensor) -> Tensor:
    """Mean next-token loss in nats over a batch of blocks [B, T]."""
    loss: Tensor = model(input_ids=blocks_BT, labels=blocks_BT, use_cache=False).loss
    return loss


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bfloat16 arithmetic over float32 weights, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@torch.no_grad()
def domain_losses(
    model: nn.Module,
    validation: Mapping[str, TokenBlocks],
    accelerator: Accelerator,
    *,
    batch_size: int,
    precision: str = "fp32",
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, float]:
    """Mean validation loss of each domain.

    Args:
        model: A causal language model in evaluation mode.
        validation: Domain -> blocks; each rank takes every n-th.
        accelerator: Gives device and ranks.
        batch_size: Blocks in a forward pass.
        precision: `fp32` or `bf16`.
        on_progress: Called with the blocks done and in total (of this rank).

    Returns:
        Domain -> nats per token; the same on every rank.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    mine = {name: np.arange(rank, len(blocks), ranks) for name, blocks in validation.items()}
    total, done = sum(map(len, mine.values())), 0
    sums = torch.zeros(len(validation), dtype=torch.float64, device=accelerator.device)
    for index, (name, blocks) in enumerate(validation.items()):
        largest = -(-len(blocks) // ranks)
        for start in range(0, largest, batch_size):
            rows = mine[name][start : start + batch_size]
            # A rank without blocks left runs the model too: other ranks need its shards.
            batch_BT = torch.from_numpy(blocks[rows if len(rows) else slice(0, 1)]).to(
                accelerator.device
            )
            with autocast(accelerator.device, precision):
                loss = language_modelling_loss(model, batch_BT)
            if len(rows):
                sums[index] += loss.double() * len(rows)
            done += len(rows)
            on_progress(done, total)
    sums = accelerator.reduce(sums)
    return {
        name: value / len(blocks)
        for (name, blocks), value in zip(validation.items(), sums.tolist(), strict=True)
    }
