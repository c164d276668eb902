"""The policies that DRPruning is compared with, all of them one formula.

All take `(initial_ratio, total_steps, final_params, *, settings)`, so that one can stand in for
another, though only DRPruning looks at the length of training and the size of the model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.scheduling.policy import PolicyBase, ReferencedPolicy
from drpruning.scheduling.reference import GivenLosses
from drpruning.scheduling.worst_case import FloatArray

_SMALLEST_SHARE = float(np.nextafter(0.0, 1.0))
_LOWEST_LOG = -float(np.finfo(np.float64).max)  # JSON has no -inf


class Constant(PolicyBase):
    """The initial ratio throughout."""

    name = "constant"

    def _ratio_from(self, losses: FloatArray) -> FloatArray:  # noqa: ARG002
        return self._ratio


class Equal(PolicyBase):
    """The same share for every domain throughout, whatever the initial ratio is.

    Args:
        initial_ratio: Names the domains; a domain's share in it counts for nothing.
        total_steps: Not used.
        final_params: Not used.
    """

    name = "equal"

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        self._ratio = self._ratio_from(self._ratio)

    def _ratio_from(self, losses: FloatArray) -> FloatArray:
        return np.full_like(losses, 1 / len(losses))


class GroupDRO(PolicyBase):
    """Exponentiated gradient on the losses: `q_i <- q_i * exp(eta * loss_i)`, normalised.

    So after any number of updates the ratio is the softmax of the logarithm of the initial ratio
    plus `eta` times the sum of the losses so far.

    Source: Sagawa et al. 2019 (arXiv 1911.08731), Algorithm 1, which steps once per training step,
    with `eta` 0.01. Here there is one step per evaluation, so `eta` is larger. What it does depends
    on `eta` times the number of evaluations. In simulated trainings (`benchmarks/worlds.py`, 20 and
    60 evaluations) a product of 2 was the largest that left the mean loss over the domains within
    0.02 nats of that under the constant ratio, while the worst domain gained 0.08 to 0.12. A
    product of 6 gained it 0.17 to 0.22 and cost the mean up to 0.07. The default is 2 for 20
    evaluations; with more of them, divide accordingly.

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
        eta: float = 0.1,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        if not 0 < eta < np.inf:
            raise BadInput(f"eta must be positive, not {eta}")
        self.eta = eta
        self._log_ratio: FloatArray = np.log(self._ratio)

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        return super().state_dict() | {"log_ratio": self._named(self._log_ratio)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        super().load_state_dict(state)
        self._log_ratio = self._log_ratio_of(state)

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        super().continue_from(state)
        self._log_ratio = self._log_ratio_of(state)

    def _log_ratio_of(self, state: Mapping[str, Any]) -> FloatArray:
        """The logarithms in a state, or of its ratio: other policies and older runs have none."""
        if "log_ratio" not in state:
            return np.log(np.maximum(self._ratio, _SMALLEST_SHARE))
        log_ratio = self._array(state["log_ratio"], "log_ratio")
        if np.abs(np.exp(log_ratio) - self._ratio).max() > 1e-6:
            raise BadInput("the state's log_ratio is of another ratio; remove it from the state")
        return log_ratio

    def _ratio_from(self, losses: FloatArray) -> FloatArray:
        # The logarithms carry the history, not the shares: a share below 1e-308 is 0 in float64,
        # and 0 stays 0 under any factor, however much worse that domain is from then on.
        with np.errstate(over="ignore"):
            moved = self._log_ratio + self.eta * (losses - losses.max())
            moved -= np.logaddexp.reduce(moved)
        self._log_ratio = np.maximum(moved, _LOWEST_LOG)
        ratio: FloatArray = np.exp(self._log_ratio)
        ratio /= ratio.sum()
        return ratio


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
        reference_loss: Loss that each domain should reach, in nats, or `source` for the source
            model's own at step 0; required.
    """

    name = "sheared"
    _SMOOTHING = 1e-4

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
        *,
        reference_loss: GivenLosses | None = None,
    ) -> None:
        if reference_loss is None:
            raise BadInput("the policy sheared needs a reference_loss for every domain")
        super().__init__(initial_ratio, total_steps, final_params, reference_loss)

    def _ratio_from(self, excess: FloatArray) -> FloatArray:
        # Smoothing keeps every share above c / n, so the ratio itself can carry the history. The
        # exponents are unbounded, though, and a start may have shares of 0 (logarithm -inf).
        with np.errstate(divide="ignore"):
            moved = np.log(self._ratio) + excess
        weight = np.exp(moved - np.logaddexp.reduce(moved))
        weight /= weight.sum()
        smoothed: FloatArray = (1 - self._SMOOTHING) * weight + self._SMOOTHING / len(weight)
        return smoothed
