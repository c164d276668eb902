"""From a recipe to the scheduling policy of one of its phases."""

from collections.abc import Mapping
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.recipe import Phase, Recipe
from drpruning.recipe.scheduling import SMALLEST_REFERENCE
from drpruning.recipe.section import SHARES_TOLERANCE
from drpruning.runs.reference_losses import ReferenceLosses
from drpruning.scheduling import DRPruning, Policy, make_policy


def phase_policy(
    recipe: Recipe,
    phase: Phase,
    final_params: float,
    reference_loss: Mapping[str, float] | None = None,
) -> Policy:
    """Make the recipe's policy as it is at the start of a phase.

    It knows only the domains that are trained on.

    Args:
        recipe: Gives the policy, its options, the initial ratio and what to start from. Where it
            names models for the reference losses, these are read from its run folder.
        phase: Gives the number of steps.
        final_params: Parameters of the model at the end of the phase.
        reference_loss: Domain -> nats, in place of those in the run folder.

    Raises:
        BadInput: The policy does not take one of the settings, cannot start as the recipe says,
            or the losses of the models that the recipe names have not been measured.
    """
    scheduling, start = recipe.scheduling, recipe.scheduling.start
    options = scheduling.options()
    if scheduling.reference_models is not None:
        if reference_loss is None:
            reference_loss = ReferenceLosses.read(
                Path(recipe.output), scheduling.reference_models, recipe.initial_ratio
            ).usable()
        options["reference_loss"] = reference_loss
    elif scheduling.policy == "sheared" and scheduling.started_reference_loss is not None:
        options["reference_loss"] = scheduling.started_reference_loss
    if isinstance(losses := options.get("reference_loss"), Mapping):
        options["reference_loss"] = {d: v for d, v in losses.items() if d in recipe.initial_ratio}
    try:
        policy = make_policy(
            scheduling.policy, recipe.initial_ratio, phase.steps, final_params, **options
        )
    except ValueError as error:
        raise BadInput(f"scheduling: {error}") from None
    if start is not None:
        _check_start(recipe, policy)
        try:
            initial = {key: policy.state_dict()[key] for key in ("version", "step", "ratio")}
            policy.continue_from(initial | start.model_dump(exclude_none=True))
        except ValueError as error:
            raise BadInput(f"scheduling.start: {error}") from None
    return policy


def untrained_reference_loss(recipe: Recipe) -> dict[str, float]:
    """The reference losses in nats that a recipe gives for domains that are only evaluated."""
    given = recipe.scheduling.reference_loss or recipe.scheduling.started_reference_loss
    losses = given if isinstance(given, Mapping) else {}
    return {name: losses[name] for name in recipe.untrained if name in losses}


def _check_start(recipe: Recipe, policy: Policy) -> None:
    """Refuse a start outside the policy's bounds: its first update would jump back into them."""
    scheduling, start = recipe.scheduling, recipe.scheduling.start
    assert start is not None  # noqa: S101 - the caller saw to it
    if (
        start.reference_ratio
        and isinstance(policy, DRPruning)
        and scheduling.moving_reference is not False
    ):
        for domain, share in recipe.initial_ratio.items():
            first = start.reference_ratio[domain]
            factor = max(first / share, share / first)
            if factor > policy.bound * (1 + SHARES_TOLERANCE):
                raise BadInput(
                    f"scheduling.start.reference_ratio: {first:.4g} for {domain} is {factor:.4g} "
                    f"times off its share of {share:.4g} in data.domains, where scheduling.bound "
                    f"allows {policy.bound:g}; write a larger bound, or leave reference_ratio out"
                )
    # The default floor moves with the reference ratio, so it has no bound to compare with.
    if start.ratio and scheduling.floor not in (None, SMALLEST_REFERENCE):
        floors = scheduling.floors(recipe.initial_ratio)
        for domain, share in start.ratio.items():
            if share < floors[domain] * (1 - SHARES_TOLERANCE):
                raise BadInput(
                    f"scheduling.start.ratio: {share:.4g} for {domain} is below scheduling.floor "
                    f"({floors[domain]:.4g}); write a smaller floor, or leave ratio out"
                )
