"""What a recipe can do but its author may not have meant: one line for each, all from numbers."""

import math
from typing import Any

from drpruning.models.files import positions
from drpruning.pruning import ModelShape
from drpruning.pruning.clients import attention_by_index, heads_that_fill, new_limits
from drpruning.recipe import Recipe
from drpruning.scheduling import MIN_POINTS

LARGEST_SPARSITY = 0.95
"""Expected sparsity of masks at the lower end of their range."""
LITTLE_FREEDOM = 0.1
"""Share of the data that must be free to move between domains for steering to mean something."""


def length_warning(recipe: Recipe, config: dict[str, Any]) -> list[str]:
    """Whether blocks are longer than the model can take."""
    most, length = positions(config), recipe.data.sequence_length
    if most is None or length <= most:
        return []
    line = f"{length} is beyond the {most} positions that the model was made for"
    return [f"data.sequence_length: {line}"]


def sparsity_warnings(source: ModelShape, target: ModelShape) -> list[str]:
    """Find axes of which more is cut than hard-concrete masks can express in expectation."""
    return [
        f"model.target.{name}: {size} -> {kept} removes more than "
        f"{100 * LARGEST_SPARSITY:.0f}%, which masks cannot reach; the cut will be abrupt"
        for name, (size, kept) in source.differences(target).items()
        if isinstance(size, int) and isinstance(kept, int) and 1 - kept / size > LARGEST_SPARSITY
    ]


def client_warnings(source: ModelShape, target: ModelShape) -> list[str]:
    """Find what other software that reads the source does not take of the target's shape."""
    limits = new_limits(source, target)
    lines = []
    if target.num_layers < source.num_layers and (mixed := attention_by_index(source)):
        lines.append(f"model.target: {mixed} (see docs/clients.md)")
    for effects in dict.fromkeys(limit.effects for limit in limits):
        alike = [limit for limit in limits if limit.effects == effects]
        problems = ", ".join(limit.problem for limit in alike)
        remedy = ""
        if alike[0].severe and (heads := heads_that_fill(source, target.hidden_size)):
            remedy = f"; num_heads: {heads[0]} with num_kv_heads: {heads[1]} would fill it"
        lines.append(
            f"model.target: {problems}: {', '.join(effects)}{remedy} (see docs/clients.md)"
        )
    return lines


def floor_warning(recipe: Recipe) -> list[str]:
    """Warn of floors that leave nearly nothing to steer; the default always leaves 40%."""
    scheduling = recipe.scheduling
    if scheduling.floor is None or len(recipe.initial_ratio) == 1:
        return []
    floors = scheduling.floors(recipe.initial_ratio).values()
    free = 1 - math.fsum(floors)
    if free > LITTLE_FREEDOM or free < -1e-9:  # more than there is: no policy takes such a floor
        return []
    line = (
        f"scheduling.floor: the floors take {100 * min(1 - free, 1):.0f}% of the data, so only "
        f"{100 * max(free, 0):.0f}% of it can be steered; write a smaller floor, "
        f"such as {min(floors) / 2:.2g}"
    )
    return [line]


def update_warnings(recipe: Recipe) -> list[str]:
    """Find phases in which no forecast comes in time, so that the ratio would never move."""
    scheduling = recipe.scheduling
    if not recipe.forecasts or recipe.reference_origin is not None:
        return []
    # A curve over the data of a domain has a point at step 0, a curve over steps (T**-b) has none.
    at_step_0 = int(scheduling.forecast_at != "present")
    begin = scheduling.forecast_start or 0.0
    lines = []
    for name, phase in recipe.phases.items():
        # The forecast of the last step comes too late to move anything.
        steps = range(phase.evaluate_every, phase.steps, phase.evaluate_every)
        points = len(steps) + at_step_0
        if steps and points >= MIN_POINTS and steps[-1] >= begin * phase.steps:
            if scheduling.handover == "continue":
                break  # the next phase begins with these forecasts
            continue
        lines.append(
            f"{name}.evaluate_every: the ratio would never move: without reference losses "
            f"(scheduling.reference_loss) it takes a forecast, that takes {MIN_POINTS} evaluations "
            f"{'after step 0 ' * (1 - at_step_0)}and scheduling.forecast_start ({begin:g}) of the "
            f"steps, and no evaluation before the last step ({len(steps)} after step 0) has both "
            "behind it"
        )
    return lines
