"""The loss of distillation, in chunks of tokens: no second tensor of [tokens, vocabulary] lives.

Shapes: N tokens, n tokens of a chunk, V vocabulary, k top tokens.

    loss = (1 - weight) * cross-entropy + weight * temperature**2 * KL(teacher || student)

Both are means over the tokens that count. The divergence is between the softmax of both models'
logits over the temperature; its factor keeps the size of its gradient (Hinton et al. 2015,
arXiv 1503.02531, section 2.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from drpruning.common.chunks import LOGIT_CHUNK

IGNORED = -100
"""The label of a token that does not count, as in Transformers."""


class TopTokens(NamedTuple):
    """The likeliest tokens of a teacher; all others count as one more.

    Attributes:
        log_probabilities: [n, k], at the temperature, normalised over the full vocabulary.
        ids: [n, k], int64.
    """

    log_probabilities: Tensor
    ids: Tensor


TeacherChunk = Callable[[slice], Tensor | TopTokens]
"""Rows of the batch -> log-probabilities [n, V] at the temperature, or the top tokens."""


class DistillationLoss(NamedTuple):
    """The loss and its parts.

    Attributes:
        loss: Scalar, differentiable.
        cross_entropy: [N] in nats, detached; 0 where a token does not count.
        divergence: [N] in nats, detached, without the factor; 0 where a token does not count.
        tokens: How many count, a scalar on the device.
    """

    loss: Tensor
    cross_entropy: Tensor
    divergence: Tensor
    tokens: Tensor


def log_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None
) -> Tensor | TopTokens:
    """What a teacher with these logits gives `distillation_loss`.

    Args:
        logits: [n, V].
        temperature: What logits are divided by.
        top_k: How many of the likeliest tokens; None: all.
    """
    found = (logits.float() / temperature).log_softmax(-1)
    return found if top_k is None else TopTokens(*found.topk(min(top_k, found.shape[-1])))


def next_tokens(labels: Tensor) -> Tensor:
    """The label of each token's prediction: the token after it, and none for the last of a row.

    Args:
        labels: [B, T], `IGNORED` where a token is not to be predicted.

    Returns:
        [B * T].
    """
    return nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()


def chunk_size(vocabulary: int) -> int:
    """How many tokens are computed at a time, over a vocabulary of this size."""
    return max(1, LOGIT_CHUNK // (4 * vocabulary))


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: TeacherChunk,
    *,
    weight: float = 0.9,
    temperature: float = 1.0,
    tokens: Tensor | float | None = None,
    chunk: int | None = None,
) -> DistillationLoss:
    """The loss of a student, whose logits are overwritten with its gradient.

    What else needs their values must have been computed before. Where another operation has kept
    them for its own gradient, torch raises an error in the backward pass. There is one backward
    pass of a loss, also with `retain_graph`.

    Args:
        logits: [N, V] of the student, contiguous.
        labels: [N] the next tokens; `IGNORED` where a token does not count.
        teacher: Gives the teacher's distribution of a slice of the N tokens, without gradient.
        weight: Of the divergence, from 0 to 1; the cross-entropy has the rest.
        temperature: What the logits of both are divided by in the divergence; > 0.
        tokens: What the sums are divided by; None: the tokens that count.
        chunk: Tokens computed at a time; None: `chunk_size` of the vocabulary.
    """
    counted = labels != IGNORED
    total = counted.sum()
    chunk = chunk or chunk_size(logits.shape[-1])
    loss, entropy, divergence = _Distillation.apply(  # type: ignore[no-untyped-call]
        logits,
        labels,
        teacher,
        weight,
        temperature,
        total.clamp(min=1) if tokens is None else tokens,
        chunk,
    )
    return DistillationLoss(loss, entropy, divergence, total)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        teacher: TeacherChunk,
        weight: float,
        temperature: float,
        tokens: Tensor | float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        entropy_N, divergence_N = (logits.new_zeros(len(logits), dtype=torch.float32) for _ in "ab")
        gradient_NV = logits.detach()  # the same memory
        for first in range(0, len(logits), chunk):
            rows = slice(first, min(first + chunk, len(logits)))
            values = _chunk(logits[rows], labels[rows], teacher(rows), weight, temperature)
            gradient_nV, entropy_N[rows], divergence_N[rows] = values
            gradient_NV[rows] = gradient_nV.div_(tokens)
        ctx.gradient = gradient_NV
        ctx.mark_non_differentiable(entropy_N, divergence_N)
        # In float32: Apple's GPUs have no float64.
        total = (1 - weight) * entropy_N.sum() + weight * temperature**2 * divergence_N.sum()
        return total / tokens, entropy_N, divergence_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # scaled in place already
            raise RuntimeError("this loss has one backward pass; compute it again for another")
        return gradient.mul_(grad), None, None, None, None, None, None


def _chunk(
    logits_nV: Tensor,
    labels_n: Tensor,
    target: Tensor | TopTokens,
    weight: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the sum over a chunk, its cross-entropies and its divergences."""
    ignored_n1 = (labels_n == IGNORED)[:, None]
    label_n1 = labels_n[:, None].masked_fill(ignored_n1, 0)  # any other below 0 is an error
    log_q = logits_nV.float().log_softmax(-1)
    entropy_n = -log_q.gather(-1, label_n1)
    one = torch.full_like(entropy_n, 1 - weight)
    gradient = log_q.exp().mul_(1 - weight).scatter_add_(-1, label_n1, -one)
    if temperature != 1:
        log_q = (logits_nV.float() / temperature).log_softmax(-1)
    if isinstance(target, TopTokens):
        divergence_n, slope = _top_divergence(log_q, target)
    else:
        divergence_n, slope = _full_divergence(log_q, target)
    # d/dz of temperature**2 * KL(p || softmax(z / temperature)) is temperature * slope.
    # Filled, not multiplied by 0: what does not count may be infinite.
    gradient.add_(slope, alpha=weight * temperature).masked_fill_(ignored_n1, 0)
    entropy_n = entropy_n.masked_fill(ignored_n1, 0)[:, 0]
    return gradient, entropy_n, divergence_n.masked_fill(ignored_n1[:, 0], 0)


def _full_divergence(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) [n] and its derivative [n, V] by the arguments of q's softmax: q - p."""
    p = log_p.float().exp()
    # 0 * -inf where the teacher rules a token out is 0; so is what q gives to it then.
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    return terms.sum(-1), log_q.exp().sub_(p)


def _top_divergence(log_q: Tensor, target: TopTokens) -> tuple[Tensor, Tensor]:
    """The same with all but the top tokens as one: their probability is what is left to 1.

    Of a token in the rest the derivative is q - r_p * q / r_q, with r the probability of the rest.
    """
    log_p, ids = target.log_probabilities.float(), target.ids
    p, own_log_q = log_p.exp(), log_q.gather(-1, ids)
    q = log_q.exp()
    rest_q = q.scatter(-1, ids, 0.0).sum(-1, keepdim=True)  # not 1 - sum, which cancels
    rest_p = (1 - p.sum(-1, keepdim=True)).clamp(min=0)
    tiny = torch.finfo(torch.float32).tiny
    rest = torch.where(rest_p > 0, rest_p * (rest_p / rest_q.clamp(min=tiny)).log(), 0.0)
    divergence = torch.where(p > 0, p * (log_p - own_log_q), 0.0).sum(-1) + rest[:, 0]
    slope = q * (1 - rest_p / rest_q.clamp(min=tiny))
    slope.scatter_(-1, ids, own_log_q.exp() - p)
    return divergence, slope
