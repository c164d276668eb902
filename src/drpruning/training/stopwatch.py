"""The wall-clock time that a phase has taken, over all starts of the command."""

import time
from collections.abc import Mapping
from typing import Any

import torch


class Stopwatch:
    """Measures the seconds of a phase, in training steps and in total.

    Attributes:
        training: Seconds in training steps, without evaluations and checkpoints.
        total: Seconds in total, as of the last `read_total`.
    """

    def __init__(self, device: torch.device):
        """Set both to 0; `start` begins to count.

        Args:
            device: Runs the steps, and is waited for before the time is read.
        """
        self._device = device
        self.training = self.total = self._lap = 0.0
        self._began: float | None = None
        self._resumed: float | None = None

    def start(self) -> None:
        """Count the total from now on, in addition to that of earlier starts."""
        self._began = time.monotonic() - self.total

    def read_total(self) -> float:
        """Bring `total` up to date and return it."""
        if self._began is not None:
            self.total = time.monotonic() - self._began
        return self.total

    def resume(self) -> None:
        """Count training from now on, if it is not counted already."""
        if self._resumed is None:
            self._resumed = time.monotonic()

    def pause(self) -> None:
        """Stop counting training, once the device has finished its steps."""
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
        """Restore what `state_dict` gave."""
        self.training, self._lap = state["training"], state["logged"]
        self.total = state["total"]
