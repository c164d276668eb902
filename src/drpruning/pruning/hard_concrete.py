"""The hard concrete distribution (Louizos et al., ICLR 2018, arXiv 1712.01312), as pure functions.

A mask entry has one parameter, its log-alpha. All functions work entry by entry on any shape.
"""

import math

import torch
from torch import Tensor

LEFT, RIGHT = -0.1, 1.1
TEMPERATURE = 2 / 3
EPSILON = 1e-6
INITIAL_MEAN, INITIAL_DEVIATION = 5.0, 0.01
SMALLEST_LOG_ALPHA, LARGEST_LOG_ALPHA = math.log(1e-2), math.log(1e2)
SHARPNESS = 0.8
"""Factor on log-alpha in the deterministic value, as in Sheared LLaMA."""


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Random mask values, differentiable in `log_alpha`.

    Args:
        log_alpha: any shape.
        uniform: noise from [0, 1), same shape.

    Returns:
        Values in [0, 1], exact zeros and ones among them.
    """
    noise = uniform * (1 - 2 * EPSILON) + EPSILON
    concrete = torch.sigmoid((torch.logit(noise) + log_alpha) / TEMPERATURE)
    return (concrete * (RIGHT - LEFT) + LEFT).clamp(0, 1)


def expected_score(log_alpha: Tensor) -> Tensor:
    """P(mask != 0), differentiable in `log_alpha`."""
    zero = torch.sigmoid(TEMPERATURE * math.log(-LEFT / RIGHT) - log_alpha)
    return 1 - zero.clamp(EPSILON, 1 - EPSILON)


def soft_value(log_alpha: Tensor) -> Tensor:
    """The deterministic value of an entry that stays, in (0, 1)."""
    return torch.sigmoid(SHARPNESS * log_alpha / TEMPERATURE)


def rank(scores: Tensor) -> Tensor:
    """Place of every entry along the last dimension, 0 for the highest.

    Args:
        scores: [..., n].

    Returns:
        Whole numbers like `scores`. Among equals the lower index comes first.
    """
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def keep_highest(log_alpha: Tensor, count: Tensor | int) -> Tensor:
    """Which entries along the last dimension stay when `count` of them may.

    Args:
        log_alpha: [..., n].
        count: entries to keep, broadcast against [..., 1].

    Returns:
        Boolean tensor like `log_alpha`. Among equals the lower index stays.
    """
    return rank(log_alpha) < count
