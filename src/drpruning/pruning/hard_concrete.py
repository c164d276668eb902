"""The hard concrete distribution (Louizos et al., ICLR 2018, arXiv 1712.01312), as pure functions.

A mask entry has one parameter, its log-alpha. All functions work entry by entry on any shape.
"""

import math

import torch
from torch import Tensor

LEFT, RIGHT = -0.1, 1.1
"""Ends to which the concrete distribution is stretched (gamma and zeta of Louizos et al.). What
falls outside [0, 1] is cut off there, which gives exact zeros and ones a positive probability."""
TEMPERATURE = 2 / 3
"""Beta of Louizos et al."""
EPSILON = 1e-6
"""Distance that noise and probabilities keep from 0 and 1, where their logarithms end."""
INITIAL_MEAN, INITIAL_DEVIATION = 5.0, 0.01
"""Of the first log-alphas. The mean is above the largest value that is allowed, so that all masks
start equal, at that value: P(mask != 0) is 0.998 there."""
SMALLEST_LOG_ALPHA, LARGEST_LOG_ALPHA = math.log(1e-2), math.log(1e2)
"""Range of log-alphas. Further out the sigmoids are so flat that no gradient brings one back."""
SHARPNESS = 0.8
"""Factor on log-alpha in the deterministic value. Sheared LLaMA's code has it; no paper explains
it, and it stays because plans are compared with that work."""


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Draw mask values, differentiable in `log_alpha` (Louizos et al., Eq. 10 and 11).

    Args:
        log_alpha: any shape.
        uniform: noise from [0, 1), same shape.

    Returns:
        Values in [0, 1], exact zeros and ones among them.
    """
    # The gradient reaches log-alpha through the noise held fixed (reparametrization). Where the
    # clamp cuts it is zero: such an entry is moved by the Lagrangian alone.
    noise = uniform * (1 - 2 * EPSILON) + EPSILON
    concrete = torch.sigmoid((torch.logit(noise) + log_alpha) / TEMPERATURE)
    return (concrete * (RIGHT - LEFT) + LEFT).clamp(0, 1)


def expected_score(log_alpha: Tensor) -> Tensor:
    """P(mask != 0) of every entry, differentiable in `log_alpha` (Louizos et al., Eq. 12)."""
    # A mask is 0 where the stretched variable is below 0, so this is one value of the concrete
    # distribution function: P(mask = 0) = sigmoid(beta log(-gamma / zeta) - log-alpha).
    zero = torch.sigmoid(TEMPERATURE * math.log(-LEFT / RIGHT) - log_alpha)
    return 1 - zero.clamp(EPSILON, 1 - EPSILON)


def soft_value(log_alpha: Tensor) -> Tensor:
    """The deterministic value of an entry that stays, in (0, 1).

    Not that of Louizos et al. (Eq. 13), which can be 0: how many entries are 0 is decided by rank,
    see `keep_highest`, so that the number is exact.
    """
    return torch.sigmoid(SHARPNESS * log_alpha / TEMPERATURE)


def rank(scores: Tensor) -> Tensor:
    """The place of every entry along the last dimension, 0 for the highest.

    Args:
        scores: [..., n].

    Returns:
        Whole numbers like `scores`. Among equals the lower index comes first.
    """
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def keep_highest(log_alpha: Tensor, count: Tensor | int) -> Tensor:
    """Choose the `count` highest entries along the last dimension.

    Args:
        log_alpha: [..., n].
        count: entries to keep, broadcast against [..., 1].

    Returns:
        Boolean tensor like `log_alpha`, true for what stays. Among equals the lower index stays.
    """
    return rank(log_alpha) < count
