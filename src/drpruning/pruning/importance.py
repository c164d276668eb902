"""The importance of each part before any mask is trained, and masks that start from it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from drpruning.common.errors import BadInput
from drpruning.pruning.hard_concrete import LARGEST_LOG_ALPHA, rank
from drpruning.pruning.masked_model import MaskedModel

SPREAD = 2.0
"""Distance of the least from the most important log-alpha of a constraint at the start; the least
important part then stays with probability 0.985 and has the value 0.96."""


def taylor_importance(
    masked: MaskedModel, batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Estimate the first-order Taylor importance of every part that has a mask.

    The score of a part is the sum over batches of (dL/dz)^2, where z is its mask, all masks are one
    and L is the language-modelling loss (Molchanov et al. 2019, arXiv 1906.10771, with the mask
    as the parameter). Signed gradients cancel over the data in a trained model, where the mean
    gradient vanishes; the mean square is then the diagonal of the Fisher information, and half of
    it the expected rise of the loss when z goes from 1 to 0. Small batches estimate it best, a
    sequence at a time best of all.

    It takes no more memory than a training step: no weight gets a gradient. The model's mode and
    autocast are the caller's.

    Args:
        masked: the model; its masks are not used and not changed.
        batches: the model's inputs, `labels` among them.

    Returns:
        Granularity -> scores with the shape of its masks, float64.

    Raises:
        FloatingPointError: a gradient is not finite.
    """
    names = masked.masks.granularities
    ones = [torch.ones_like(masked.masks.log_alpha[n], requires_grad=True) for n in names]
    scores = [torch.zeros_like(one, dtype=torch.float64, requires_grad=False) for one in ones]
    for batch in batches:
        loss = masked.run_with(dict(zip(names, ones, strict=True)), **batch).loss
        for score, gradient in zip(scores, torch.autograd.grad(loss, ones), strict=True):
            score.add_(gradient.double().square())
    if not all(score.isfinite().all() for score in scores):
        raise FloatingPointError("the importance of the parts is not finite; check model and data")
    return dict(zip(names, scores, strict=True))


@torch.no_grad()
def initialise_masks(
    masked: MaskedModel, scores: Mapping[str, Tensor], spread: float = SPREAD
) -> None:
    """Order the masks of each constraint by importance, all of them still near one.

    Only the order counts: the log-alphas of a constraint are evenly spaced, from the largest value
    allowed to `spread` below it. Among equals the lower index is the more important.

    Args:
        masked: its log-alphas are set in place.
        scores: granularity -> score of every part, shaped like its masks; higher stays longer.
        spread: distance of the least important log-alpha from the most important.

    Raises:
        BadInput: scores for other granularities or of other shapes than the masks.
    """
    masks = masked.masks.log_alpha
    expected = {name: tuple(log_alpha.shape) for name, log_alpha in masks.items()}
    given = {name: tuple(score.shape) for name, score in scores.items()}
    if given != expected:
        raise BadInput(f"the scores have the shapes {given}, the masks {expected}")
    for name, log_alpha in masks.items():
        place = rank(scores[name]) / max(1, log_alpha.shape[-1] - 1)
        log_alpha.copy_(LARGEST_LOG_ALPHA - spread * place)
