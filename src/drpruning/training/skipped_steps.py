"""Steps whose loss or gradient norm is not finite: skipped on the device, counted later.

At such a step the optimizer leaves weights, moments, masks and multipliers as they are; data, noise
and learning rate advance. Nothing waits for the device to find out: which steps were skipped is
read together with the numbers to log.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drpruning.training.messages import latest_text


class SkippedStep(NamedTuple):
    """A step that changed nothing: its number, from 1, and the numbers that it gave."""

    step: int
    numbers: dict[str, float]
    in_a_row: int


class StepMetrics:
    """Sums over the steps since the last log line, and which of them were skipped.

    Attributes:
        sums: Name -> sum over the steps that were not skipped.
        counted: Steps in `sums`.
        skipped: Steps that were skipped.
        in_a_row: How many of the latest steps were skipped in a row, also before the last log line.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self._names: Sequence[str] = ()
        self.counted = self.skipped = self.in_a_row = 0
        self._pending: list[tuple[int, Tensor]] = []

    def add(self, step: int, names: Sequence[str], values: Tensor) -> Tensor:
        """Add the numbers of a step, without waiting for the device.

        Args:
            step: Its number, from 1.
            names: The same in every step of a process; a resumed run may have others.
            values: Float64 [names], the same on every rank.

        Returns:
            1 where the step is to be skipped, else 0; float32 scalar on the device of `values`.
        """
        self._names = names
        if self.sums.keys() != set(names):
            self.sums = dict.fromkeys(names, 0.0)
            self.counted = self.skipped = 0
        self._pending.append((step, values))
        return torch.logical_not(torch.isfinite(values).all()).float()

    def synchronize(self) -> list[SkippedStep]:
        """Wait for the numbers of all steps; returns those skipped since this was last called."""
        if not self._pending:
            return []
        steps, values = zip(*self._pending, strict=True)
        self._pending = []
        found = []
        for step, row in zip(steps, torch.stack(values).tolist(), strict=True):
            numbers = dict(zip(self._names, row, strict=True))
            if all(map(math.isfinite, row)):
                self.sums = {name: total + numbers[name] for name, total in self.sums.items()}
                self.counted += 1
                self.in_a_row = 0
            else:
                self.skipped += 1
                self.in_a_row += 1
                found.append(SkippedStep(step, numbers, self.in_a_row))
        return found

    def means(self) -> dict[str, float]:
        """Name -> mean over the steps that were not skipped, NaN without any; synchronize first."""
        return {n: total / self.counted if self.counted else math.nan for n, total in
                self.sums.items()}  # fmt: skip

    def reset(self) -> None:
        """Clear the sums and counts that have been logged."""
        self.sums = dict.fromkeys(self.sums, 0.0)
        self.counted = self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """The state as plain JSON values; synchronize first."""
        names = ("sums", "counted", "skipped", "in_a_row")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)


def skipped_text(found: Sequence[SkippedStep]) -> str:
    """The warning about steps that were skipped."""
    steps = ", ".join(str(skipped.step) for skipped in found)
    return (
        f"loss or gradient norm not finite at step{'s' if len(found) > 1 else ''} {steps}: "
        "skipped, nothing was changed; metrics.jsonl has the blocks"
    )


def failure_text(
    phase: str, last: SkippedStep, blocks: Mapping[str, Sequence[int]], saved: int
) -> str:
    """The error where too many steps in a row were skipped.

    Args:
        phase: `prune` or `pretrain`.
        last: The latest of them.
        blocks: Domain -> ids of the blocks in its batch.
        saved: Step of the latest checkpoint, 0 without one.
    """
    first = last.step - last.in_a_row + 1
    steps = f"step {last.step}" if first == last.step else f"steps {first} to {last.step}"
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in last.numbers.items())
    batch = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in blocks.items())
    return (
        f"{phase}: loss or gradient norm not finite at {steps}, as often in a row as "
        f"training.skip_limit ({last.in_a_row}) allows; {latest_text(saved)}.\n"
        f"At step {last.step}: {numbers}, on the blocks {batch} (those of every skipped step are "
        "in metrics.jsonl). The same command meets these steps again: check their blocks and "
        f"{phase}.learning_rate, or go past them with --set training.skip_limit="
        f"{10 * last.in_a_row}."
    )
