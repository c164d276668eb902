"""What a policy has seen of the losses in its phase."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.common.unknown import nan_for_null, null_for_nan
from drpruning.scheduling.worst_case import FloatArray


class LossHistory:
    """The evaluations of a phase: losses, number of parameters and data of each domain.

    Args:
        domains: Their names.
        loss_weight: Weight of a new loss in the moving average of losses, in (0, 1]; 1 takes the
            losses as they are.

    Raises:
        BadInput: `loss_weight` lies outside.
    """

    def __init__(self, domains: Sequence[str], loss_weight: float) -> None:
        if not 0 < loss_weight <= 1:
            raise BadInput(f"loss_weight must lie between 0 and 1, not {loss_weight}")
        self._domains, self._weight = tuple(domains), loss_weight
        self._steps: list[int] = []
        self._params: list[float] = []
        self._losses: list[FloatArray] = []
        self._data: list[FloatArray] = []
        self._average: FloatArray = np.full(len(domains), np.nan)

    @property
    def steps(self) -> FloatArray:
        """Optimizer steps done at each evaluation [m]."""
        return np.array(self._steps, dtype=np.float64)

    @property
    def params(self) -> FloatArray:
        """Number of parameters at each evaluation [m]; NaN where not known."""
        return np.array(self._params, dtype=np.float64)

    @property
    def losses(self) -> FloatArray:
        """Losses in nats [n, m], averaged if wanted; NaN where not measured."""
        return self._columns(self._losses)

    @property
    def data(self) -> FloatArray:
        """Data that each domain had had at each evaluation, in steps' worth [n, m]."""
        return self._columns(self._data)

    @property
    def peak(self) -> int:
        """The evaluation at which the mean loss was largest; 0 without any loss.

        A loss that was not measured counts as lying on the line between those before and after it,
        so that neither a gap nor a domain that came later decides where the top is.
        """
        evaluations, total = np.arange(len(self._steps)), np.zeros(len(self._steps))
        for losses in self.losses:
            known = np.isfinite(losses)
            if known.any():
                total += np.interp(evaluations, evaluations[known], losses[known])
        return int(np.argmax(total))

    def record(
        self, step: int, losses: FloatArray, params: float | None, data: FloatArray
    ) -> FloatArray:
        """Add an evaluation; returns the losses [n] to go by, averaged if wanted."""
        w = self._weight
        averaged = w * losses + (1 - w) * self._average if w < 1 else losses
        averaged = np.where(np.isnan(averaged), losses, averaged)  # the first of its domain
        self._average = np.where(np.isnan(averaged), self._average, averaged)
        self._steps.append(step)
        size = math.nan if params is None else float(params)
        self._params.append(size if 0 < size < math.inf else math.nan)
        self._losses.append(averaged)
        self._data.append(data)
        return averaged

    def state_dict(self) -> dict[str, Any]:
        """The state as plain JSON values, null for NaN."""
        average = zip(self._domains, null_for_nan(self._average.tolist()), strict=True)
        return {
            "average_loss": {name: value for name, value in average if value is not None} or None,
            "history": {
                "steps": list(self._steps),
                "params": null_for_nan(self._params),
                "losses": self._by_domain(self.losses),
                "data": self._by_domain(self.data),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        history, average = state["history"], state["average_loss"] or {}
        self._steps = list(history["steps"])
        self._params = [nan_for_null(size) for size in history["params"]]
        self._losses = self._rows(history["losses"])
        self._data = self._rows(history["data"])
        self._average = np.array([average.get(d, math.nan) for d in self._domains])

    def _columns(self, rows: Sequence[FloatArray]) -> FloatArray:
        return np.array(rows, dtype=np.float64).reshape(-1, len(self._domains)).T

    def _by_domain(self, columns: FloatArray) -> dict[str, list[float | None]]:
        named = zip(self._domains, columns.tolist(), strict=True)
        return {name: null_for_nan(column) for name, column in named}

    def _rows(self, columns: Mapping[str, Sequence[float | None]]) -> list[FloatArray]:
        values = [[nan_for_null(v) for v in columns[d]] for d in self._domains]
        return list(np.array(values, dtype=np.float64).T)
