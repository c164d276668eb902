"""The policies that DRPruning is compared with, all of them one formula.

All take `(initial_ratio, total_steps, final_params, *, settings)`, so that one can stand in for
another, though only DRPruning looks at the length of training and the size of the model.
"""

from collections.abc import Mapping

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.scheduling.policy import PolicyBase, ReferencedPolicy
from drpruning.scheduling.worst_case import FloatArray


class Constant(PolicyBase):
    """The initial ratio throughout."""

    name = "constant"

    def _ratio_from(self, losses: FloatArray) -> FloatArray:  # noqa: ARG002
        return self._ratio


class GroupDRO(PolicyBase):
    """Exponentiated gradient on the losses: `q_i <- q_i * exp(eta * loss_i)`, normalised.

    Source: Sagawa et al. 2019 (arXiv 1911.08731), Algorithm 1; here one step an evaluation.

    Args:
        initial_ratio: Share of each domain at the start.
        total_steps: Not used.
        final_params: Not used.
        eta: Step size, in 1/nats.
    """

    name = "group_dro"

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
        *,
        eta: float = 0.01,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        if not 0 < eta < np.inf:
            raise BadInput(f"eta must be positive, not {eta}")
        self.eta = eta

    def _ratio_from(self, losses: FloatArray) -> FloatArray:
        return _reweighted(self._ratio, self.eta * losses)


class CVaR(PolicyBase):
    """All weight on the worst fraction `alpha` of the initial ratio: `q_i <= p_i / alpha`.

    The domains with the largest losses are filled up to that bound, one after the other, until the
    shares sum to 1; the others get nothing. Domains with equal losses share in proportion to their
    initial ratio.

    Source: Oren et al. 2019 (arXiv 1909.02060), conditional value at risk over groups.

    Args:
        initial_ratio: Share of each domain at the start, and `p` from then on.
        total_steps: Not used.
        final_params: Not used.
        alpha: The worst fraction, in (0, 1].
    """

    name = "cvar"

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
        *,
        alpha: float = 0.2,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        if not 0 < alpha <= 1:
            raise BadInput(f"alpha must be above 0 and at most 1, not {alpha}")
        self.alpha = alpha

    def _ratio_from(self, losses: FloatArray) -> FloatArray:
        p = self._initial_ratio
        q: FloatArray = np.zeros_like(p)
        left = 1.0
        for loss in np.unique(losses)[::-1]:
            tied = losses == loss
            bound = p[tied] / self.alpha
            q[tied] = bound * min(1.0, left / bound.sum())
            left -= q[tied].sum()
            if left <= 0:
                break
        q /= q.sum()
        return q


class Sheared(ReferencedPolicy):
    """Dynamic batch loading: `w <- softmax(log w + (loss - reference))`, then smoothed.

    The result is `(1 - c) * w + c / n` with c = 1e-4. Source: Sheared LLaMA (arXiv 2310.06694),
    Algorithm 1.

    Args:
        initial_ratio: Share of each domain at the start.
        total_steps: Not used.
        final_params: Not used.
        reference_loss: Loss that each domain should reach, in nats; required.
    """

    name = "sheared"
    _SMOOTHING = 1e-4

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> None:
        if reference_loss is None:
            raise BadInput("the policy sheared needs a reference_loss for every domain")
        super().__init__(initial_ratio, total_steps, final_params, reference_loss)

    def _ratio_from(self, excess: FloatArray) -> FloatArray:
        weight = _reweighted(self._ratio, excess)
        smoothed: FloatArray = (1 - self._SMOOTHING) * weight + self._SMOOTHING / len(weight)
        return smoothed


def _reweighted(ratio: FloatArray, exponent: FloatArray) -> FloatArray:
    """`softmax(log ratio + exponent)`; a share of 0 stays 0."""
    weight: FloatArray = ratio * np.exp(exponent - exponent[ratio > 0].max())
    weight /= weight.sum()
    return weight
