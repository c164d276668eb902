"""From a recipe to a scheduling policy. Importable without torch."""

from collections.abc import Mapping
from pathlib import Path

from drpruning.errors import BadInput
from drpruning.recipe import Phase, Recipe
from drpruning.scheduling import Policy, make_policy
from drpruning.training.reference_loss import ReferenceLosses


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
            the reference losses have not been measured.
    """
    scheduling, start = recipe.scheduling, recipe.scheduling.start
    options = scheduling.options()
    if scheduling.reference_models is not None:
        if reference_loss is None:
            measured = ReferenceLosses.read(Path(recipe.output), scheduling.reference_models)
            reference_loss = measured.reference_loss
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
        try:
            policy.continue_from(policy.state_dict() | start.model_dump(exclude_none=True))
        except ValueError as error:
            raise BadInput(f"scheduling.start: {error}") from None
    return policy
