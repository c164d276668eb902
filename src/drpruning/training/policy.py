"""From a recipe to a scheduling policy. Importable without torch."""

from drpruning.errors import BadInput
from drpruning.recipe import Phase, Recipe
from drpruning.scheduling import Policy, make_policy


def phase_policy(recipe: Recipe, phase: Phase, final_params: float) -> Policy:
    """The recipe's policy at the start of a phase.

    Args:
        recipe: Gives the policy, its options and the initial ratio.
        phase: Gives the number of steps.
        final_params: Parameters of the model at the end of the phase.

    Raises:
        BadInput: The policy does not take one of the options.
    """
    name, options = recipe.scheduling.policy, recipe.scheduling.options()
    try:
        return make_policy(name, recipe.initial_ratio, phase.steps, final_params, **options)
    except ValueError as error:
        raise BadInput(f"scheduling: {error}") from None
