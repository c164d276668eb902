"""Sentences under the figures, computed from the data they show."""

import math
from collections.abc import Callable, Mapping, Sequence

from drpruning.report.drawing import signed
from drpruning.report.records import EvalPoint, SimilarityPoint

Numbers = Mapping[str, float]


def finite(values: Numbers) -> list[float]:
    """The values that are known."""
    return [value for value in values.values() if math.isfinite(value)]


def range_of_changes(changes: Numbers) -> str:
    """Which domain's loss changed least and most."""
    lowest = min(changes, key=lambda name: changes[name])
    highest = max(changes, key=lambda name: changes[name])
    return (
        "From the first evaluation to the last the loss changed by between "
        f"{signed(changes[lowest])} ({lowest}) and {signed(changes[highest])} nats ({highest})."
    )


def largest_moves(evals: Sequence[EvalPoint], pick: Callable[[EvalPoint], Numbers]) -> str:
    """What grew and what shrank by the largest factor between first and last evaluation."""
    known = [pick(point) for point in evals if finite(pick(point))]
    first, last = known[0], known[-1]
    factors = {name: last[name] / first[name] for name in last if first.get(name, 0.0) > 0}
    factors = {name: factor for name, factor in factors.items() if math.isfinite(factor)}
    if not factors or max(abs(factor - 1) for factor in factors.values()) < 0.005:
        return "It has not moved."
    up = max(factors, key=lambda name: factors[name])
    down = min(factors, key=lambda name: factors[name])
    return (
        f"Between the first and the last evaluation {up} moved most upwards (to "
        f"{factors[up]:.2f} times its share) and {down} most downwards ({factors[down]:.2f} times)."
    )


def settled_step(rows: Sequence[SimilarityPoint], names: Sequence[str], level: float) -> int | None:
    """The first step from which all similarities stay at ``level`` or above."""
    settled = None
    for row in reversed(rows):
        if not all(row.similarity.get(name, 0.0) >= level for name in names):
            break
        settled = row.step
    return settled
