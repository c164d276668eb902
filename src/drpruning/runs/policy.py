"""From a recipe to a scheduling policy. No torch."""

from collections.abc import Mapping
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.recipe import Phase, Recipe
from drpruning.recipe.section import SHARES_TOLERANCE
from drpruning.runs.reference_losses import ReferenceLosses
from drpruning.scheduling import DRPruning, Policy, make_policy


def phase_policy(
    recipe: Recipe,
    phase: Phase,
    final_params: float,
    reference_loss: Mapping[str, float] | None = None,
) -> Policy:
    """The recipe's policy at the start of a phase.

    Args:
        recipe: Gives the policy, its options, the initial ratio and what to start from. Where it
            names models for the reference losses, these are read from its run folder.
        phase: Gives the number of steps.
        final_params: Parameters of the model at the end of the phase.
        reference_loss: Domain -> nats, in place of those in the run folder.

    Raises:
        BadInput: The policy does not take one of the options, cannot start as it is told to, or
            there are no reference losses of the models that the recipe names.
    """
    scheduling, start = recipe.scheduling, recipe.scheduling.start
    options = scheduling.options()
    if scheduling.reference_models is not None:
        if reference_loss is None:
            reference_loss = ReferenceLosses.read(
                Path(recipe.output), scheduling.reference_models, recipe.data.domains
            ).usable()
        options["reference_loss"] = reference_loss
    elif scheduling.policy == "sheared" and scheduling.started_reference_loss is not None:
        options["reference_loss"] = scheduling.started_reference_loss
    try:
        policy = make_policy(
            scheduling.policy, recipe.initial_ratio, phase.steps, final_params, **options
        )
    except ValueError as error:
        raise BadInput(f"scheduling: {error}") from None
    if start is not None:
        _check_start(recipe, policy)
        try:
            policy.continue_from(policy.state_dict() | start.model_dump(exclude_none=True))
        except ValueError as error:
            raise BadInput(f"scheduling.start: {error}") from None
    return policy


def _check_start(recipe: Recipe, policy: Policy) -> None:
    """Refuse a start outside the bounds of the policy, which its first update would jump into."""
    scheduling, start = recipe.scheduling, recipe.scheduling.start
    assert start is not None  # noqa: S101 - the caller saw to it
    if (
        start.reference_ratio
        and isinstance(policy, DRPruning)
        and scheduling.moving_reference is not False
    ):
        for domain, share in recipe.initial_ratio.items():
            there = start.reference_ratio[domain]
            factor = max(there / share, share / there)
            if factor > policy.bound * (1 + SHARES_TOLERANCE):
                raise BadInput(
                    f"scheduling.start.reference_ratio: {there:.4g} for {domain} is {factor:.4g} "
                    f"times off its share of {share:.4g} in data.domains, where scheduling.bound "
                    f"allows {policy.bound:g}; write a larger bound, or leave reference_ratio out"
                )
    floor = scheduling.floor  # the default one moves with the reference ratio
    if start.ratio and floor and scheduling.policy in {"drpruning", "naive_dro"}:
        for domain, share in start.ratio.items():
            if share < floor * (1 - SHARES_TOLERANCE):
                raise BadInput(
                    f"scheduling.start.ratio: {share:.4g} for {domain} is below scheduling.floor "
                    f"({floor:.4g}); write a smaller floor, or leave ratio out"
                )
