"""ADO: more data where a domain's own loss curve promises the fastest fall."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from drpruning.scheduling.decision import Decision
from drpruning.scheduling.forecast import MIN_POINTS, fit_loss_curves
from drpruning.scheduling.history import LossHistory
from drpruning.scheduling.policy import Evaluation, PolicyBase
from drpruning.scheduling.worst_case import FloatArray

# Names and values of the paper, section 3.2 and its released code.
_CREDIT_WEIGHT = 0.1  # gamma_1, of one step in the moving average of shares
_PREFERENCE_WEIGHT = 0.1  # gamma_2, of the latest preference in the ratio
_CREDIT_EXPONENT = 0.5  # s
_SMALLEST_PREFERENCE = 0.01  # delta_min
_EXPONENTS = (0.05, 0.8)  # of a law: the released code enforces the first and penalises the second


class ADO(PolicyBase):
    """Adaptive Data Optimization: shares by the learning speed that a domain's curve forecasts.

    A power law `A * t**-beta + E` is fitted to the losses of each domain over the steps t, and
    its speed is `beta * A * t**-beta / t`. The preference of domain i is `p_i * sqrt(h_i)` times
    its speed, normalised and at least 0.01, where p is the initial ratio and h a moving average of
    the shares in force (weight 0.1 a step): a domain is credited for what it was trained on. The
    ratio is 0.1 times the preference plus 0.9 times the mean of all preferences so far, the initial
    ratio counting for the steps before the first one.

    Source: Jiang et al. 2024 (arXiv 2410.11820). There the laws are fitted to training losses and
    the ratio moves at every step; here both happen at evaluations, with averages over the steps in
    between. The laws are those of `fit_loss_curves`, which is fitted to all points after step 0
    (theirs leaves out the first 1,000 steps). As in the released code, a law's variable is the
    number of steps, not the data of its domain, so that what domains teach each other counts.

    The ratio stays where it is until every domain has the four evaluations that a fit needs.

    Args:
        initial_ratio: Share of each domain at the start, and the prior p.
        total_steps: Not used.
        final_params: Not used.
    """

    name = "ado"

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        self._reset()

    def _reset(self) -> None:
        """Start a loss history; averages start from the ratio."""
        self._history = LossHistory(self._domains, loss_weight=1.0)
        self._credit = self._preference = self._mean_preference = self._ratio

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        super().continue_from(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        shares = {
            "credit": self._named(self._credit),
            "preference": self._named(self._preference),
            "mean_preference": self._named(self._mean_preference),
        }
        return super().state_dict() | shares | self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        super().load_state_dict(state)
        self._credit, self._preference, self._mean_preference = (
            self._checked_shares(state[name], f"the state's {name}")
            for name in ("credit", "preference", "mean_preference")
        )
        self._history.load_state_dict(state)

    def _decide(self, evaluation: Evaluation) -> Decision:
        step = evaluation.step
        before = self._history.steps[-1] if self._history.steps.size else 0.0
        past = (1 - _CREDIT_WEIGHT) ** (step - before)
        self._credit = past * self._credit + (1 - past) * self._ratio
        if step > before:  # the mean over the steps: this preference held since the update before
            new = (step - before) / step
            self._mean_preference = (1 - new) * self._mean_preference + new * self._preference
        self._history.record(step, evaluation.losses, evaluation.params, self._data)
        points = np.isfinite(self._history.losses[:, self._history.steps > 0]).sum(axis=1)
        for name, count in self._by_domain(points.tolist()).items():
            if count < MIN_POINTS:
                reason = f"it has {count} of the {MIN_POINTS} points that a power law needs"
                evaluation.unusable.setdefault(name, reason)
        return super()._decide(evaluation)

    def _ratio_from(self, losses: FloatArray) -> FloatArray:  # noqa: ARG002 - the history has them
        speed = self._speeds()
        preference = self._initial_ratio * self._credit**_CREDIT_EXPONENT * speed
        if preference.sum() > 0:  # otherwise all curves are flat, and the one before stays
            smallest = min(_SMALLEST_PREFERENCE, 1 / len(preference))
            preference = np.maximum(preference / preference.sum(), smallest)
            self._preference = preference / preference.sum()
        ratio: FloatArray = (
            _PREFERENCE_WEIGHT * self._preference + (1 - _PREFERENCE_WEIGHT) * self._mean_preference
        )
        ratio /= ratio.sum()
        return ratio

    def _speeds(self) -> FloatArray:
        """Fall of each loss per step [n] that its law forecasts; 0 where no fit is finite."""
        step = self._history.steps[-1]
        laws = fit_loss_curves(self._history.steps, self._history.losses, step)
        with np.errstate(all="ignore"):
            speed = np.clip(laws.beta, *_EXPONENTS) * laws.A * step**-laws.beta / step
        return np.where(np.isfinite(speed), speed, 0.0)
