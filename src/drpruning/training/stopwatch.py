"""The wall-clock time that a phase has taken, over all its starts."""

import time
from collections.abc import Mapping
from typing import Any

import torch


class Stopwatch:
    """Seconds of a phase: in training steps alone, and in all.

    Attributes:
        training: Seconds in training steps, without evaluations and checkpoints.
        total: Seconds in all, as of the last `read_total`.
    """

    def __init__(self, device: torch.device):
        """Both are 0; `start` begins to count.

        Args:
            device: What the steps run on; it is waited for before its time is read.
        """
        self._device = device
        self.training = self.total = self._lap = 0.0
        self._began: float | None = None
        self._resumed: float | None = None

    def start(self) -> None:
        """Count the total from now on, on top of what earlier starts took."""
        self._began = time.monotonic() - self.total

    def read_total(self) -> float:
        """Bring `total` up to date and return it."""
        if self._began is not None:
            self.total = time.monotonic() - self._began
        return self.total

    def resume(self) -> None:
        """Training goes on, unless it already does."""
        if self._resumed is None:
            self._resumed = time.monotonic()

    def pause(self) -> None:
        """Training rests; what the device still has to do for it counts too."""
        if self._resumed is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            self.training += time.monotonic() - self._resumed
            self._resumed = None

    def lap(self) -> float:
        """Seconds of training since this was last asked."""
        seconds, self._lap = self.training - self._lap, self.training
        return seconds

    def state_dict(self) -> dict[str, float]:
        """The state as plain JSON values."""
        return {"training": self.training, "logged": self._lap, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.training, self._lap = state["training"], state["logged"]
        self.total = state["total"]
