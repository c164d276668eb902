"""Reference losses of a policy, and where each comes from."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.scheduling.curve_fit import BoolArray
from drpruning.scheduling.worst_case import FloatArray

GivenLosses = Mapping[str, float] | Literal["source"]
"""Reference losses as the user gives them: nats by domain, or the source model's own."""
Origin = Literal["given", "source", "forecast", "smallest loss"]


class References:
    """The reference loss of each of n domains, and where it comes from.

    Attributes:
        loss: In nats [n]; NaN where there is none.
        origin: Where each comes from [n]; None where there is none.
    """

    def __init__(self, n: int) -> None:
        self.loss: FloatArray = np.full(n, np.nan)
        self.origin: list[Origin | None] = [None] * n

    @property
    def known(self) -> BoolArray:
        """Which domains have a reference loss [n]."""
        return np.isfinite(self.loss)

    @property
    def fixed(self) -> bool:
        """Whether any was given by the user or taken from the source model."""
        return any(origin in ("given", "source") for origin in self.origin)

    def has(self, origin: Origin) -> BoolArray:
        """Which domains have a reference loss of this origin [n]."""
        return np.array([found == origin for found in self.origin])

    def put(self, loss: FloatArray, origin: Origin, where: BoolArray | None = None) -> None:
        """Set the reference losses of all domains, or of those in `where` [n].

        Raises:
            BadInput: The origin is none that there is.
        """
        if origin not in get_args(Origin):
            raise BadInput(
                f"the origin of a reference loss is one of {', '.join(get_args(Origin))}, not "
                f"{origin!r}"
            )
        taken = np.ones(len(loss), dtype=bool) if where is None else where
        self.loss = np.where(taken, loss, self.loss)
        self.origin = [origin if new else old for new, old in zip(taken, self.origin, strict=True)]
