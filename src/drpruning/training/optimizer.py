"""The optimizer, its learning-rate schedule, and how a global batch is cut into micro-batches."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from drpruning.common.errors import BadInput
from drpruning.recipe import Phase


def learning_rate_factor(step: int, settings: Phase) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine.

    Args:
        step: Index of the step, from 0.
        settings: Gives `steps`, `warmup` and `final_learning_rate`.
    """
    warmup_steps = round(settings.warmup * settings.steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / max(1, settings.steps - warmup_steps)
    low = settings.final_learning_rate
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(groups: Iterable[dict[str, Any]], settings: Phase) -> torch.optim.AdamW:
    """Build one AdamW over all groups; each keeps its peak learning rate under `peak`."""
    optimizer = torch.optim.AdamW(
        list(groups),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random numbers inside the model (dropout) at a step on a rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def step_unless(optimizer: torch.optim.Optimizer, skipped: torch.Tensor) -> None:
    """Take a step of fused AdamW that changes nothing if `skipped` is 1, decided on the device.

    Args:
        optimizer: An AdamW whose groups are all fused.
        skipped: 1 or 0, float32 scalar.
    """
    optimizer.found_inf = skipped  # type: ignore[attr-defined] # as torch's GradScaler sets it
    optimizer.step()


class MicroBatch(NamedTuple):
    """Rows of the global batch that go through the model at once."""

    rows: slice
    part: int


def micro_batches(
    global_batch: int, micro_batch: int, parts: int = 1, rank: int = 0, ranks: int = 1
) -> list[MicroBatch]:
    """Cut this rank's rows of the global batch into micro-batches of one mask part each.

    Args:
        global_batch: Rows in total, over all ranks.
        micro_batch: Rows in a micro-batch, at most.
        parts: Equal parts of the global batch, each with mask noise of its own.
        rank: This rank.
        ranks: Number of ranks; each has the same number of rows and of micro-batches.

    Raises:
        BadInput: The ranks cannot share the global batch or its parts equally.
    """
    if global_batch % ranks:
        raise BadInput(
            f"global_batch: {global_batch} blocks cannot be shared equally by {ranks} ranks; "
            f"choose a multiple of {ranks}"
        )
    per_rank, per_part = global_batch // ranks, global_batch // parts
    if per_rank % per_part and per_part % per_rank:
        raise BadInput(
            f"mask_samples: with {global_batch} blocks on {ranks} ranks, {parts} parts do not end "
            f"where ranks end; choose a multiple or a divisor of {ranks}"
        )
    first, last = rank * per_rank, (rank + 1) * per_rank
    pieces = []
    row = first
    while row < last:
        part = row // per_part
        end = min(row + micro_batch, (part + 1) * per_part, last)
        pieces.append(MicroBatch(slice(row, end), part))
        row = end
    return pieces
