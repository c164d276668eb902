"""Where a phase of training may differ from plain training."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class PhaseHooks:
    """What a trainer calls at points of its loop; here nothing is done there."""

    def start_from_scratch(self) -> None:
        """Called before step 0, unless a checkpoint is resumed."""

    def prepare_step(self) -> None:
        """Called before a step."""

    def prepare_pass(self, part: int) -> None:
        """Called before the forward pass of a micro-batch of this mask part."""

    def finish_gradients(self) -> dict[str, Tensor]:
        """Add gradients that do not come from the data; returns numbers to log."""
        return {}

    def step_fields(self) -> dict[str, Any]:
        """What this phase adds to a record of kind `step`."""
        return {}

    def after_evaluation(self) -> None:
        """Called when an evaluation has been logged; may set `self.stopped` to a reason."""

    def extra_state(self) -> dict[str, Any]:
        """What this phase adds to a checkpoint."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `extra_state` gave."""
