"""From a recipe to the scheduling policy of one of its phases."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.shares import SMALLEST_REFERENCE
from drpruning.recipe import Phase, Prune, Recipe
from drpruning.recipe.scheduling import COMPARING
from drpruning.recipe.section import SHARES_TOLERANCE
from drpruning.runs.folder import RunFolder, is_chained, rebased, saved_recipe
from drpruning.runs.reference_losses import ReferenceLosses, source_losses
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
        recipe: Gives the policy, its options, the initial ratio and what to start from. Where the
            reference losses are those of models, or of the model that is pruned, they are read from
            its run folder.
        phase: Gives the number of steps.
        final_params: Parameters of the model at the end of the phase.
        reference_loss: Domain -> nats, in place of those in the run folder.

    Raises:
        BadInput: The policy does not take one of the settings, cannot start as the recipe says,
            or the losses of the models that the recipe names have not been measured.
    """
    scheduling, start = recipe.scheduling, recipe.scheduling.start
    options = scheduling.options()
    if _takes_source_itself(recipe, phase):
        reference_loss = None
    elif reference_loss is None and recipe.reference_origin in {"models", "source"}:
        reference_loss = _measured(recipe)
    if recipe.reference_origin == "source":
        options["reference_loss"] = "source"
    elif recipe.reference_origin == "models":
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
    initial = {key: policy.state_dict()[key] for key in ("version", "step", "ratio")}
    if start is not None:
        _check_start(recipe, policy)
        try:
            policy.continue_from(initial | start.model_dump(exclude_none=True))
        except ValueError as error:
            raise BadInput(f"scheduling.start: {error}") from None
    if recipe.reference_origin == "source" and reference_loss:
        known = {d: v for d, v in reference_loss.items() if d in recipe.initial_ratio}
        state = policy.state_dict() | {"reference_loss": known}
        policy.continue_from(state | {"reference_origin": dict.fromkeys(known, "source")})
    return policy


def _takes_source_itself(recipe: Recipe, phase: Phase) -> bool:
    """Whether the policy takes the source model's losses from its update at step 0.

    Masks begin a little below one, so those losses are some 0.003 nats off the source model's. As
    reference losses in pruning they make the first excess exactly 0 and the first ratio the
    reference ratio; with the source model's, 0.003 nats of noise would fill the ball.
    """
    from_source = recipe.reference_origin == "source" and isinstance(phase, Prune)
    return from_source and not is_chained(recipe)


def hand_over(policy: Policy, ended: Mapping[str, Any]) -> None:
    """Let a policy continue from the state of the one of the phase before (`handover: continue`).

    Source losses that it has already stay: those in the state may have been taken under masks.

    Raises:
        ValueError: The state is of another version or set of domains.
    """
    own = policy.state_dict().get("reference_origin") or {}
    origin = ended.get("reference_origin") or {}
    losses = ended.get("reference_loss") or {}
    kept = {d: v for d, v in losses.items() if not own.get(d) == origin.get(d) == "source"}
    policy.continue_from({**ended, "reference_loss": kept})


def _measured(recipe: Recipe) -> dict[str, float]:
    """The losses in the run folder: of the models that are named, or of the one that is pruned."""
    folder, models = Path(recipe.output), recipe.reference_models
    if models is None:
        return source_losses(_begun_in(recipe), recipe.data.domains)
    return ReferenceLosses.read(folder, models, recipe.initial_ratio).usable()


def _begun_in(recipe: Recipe) -> Path:
    """The run folder that has the losses of the model which was pruned.

    A target that is pruned from a larger one has them only where it goes by them. Its own
    evaluations are of the larger target's model, so that without them those of the larger target
    are looked for, and so on.
    """
    folder = Path(recipe.output)
    if RunFolder(folder).reference_loss.is_file() or not is_chained(recipe):
        return folder
    larger = _larger_target(recipe)
    return Path(str(recipe.model.source)).parent if larger is None else _begun_in(larger)


def _first_of_chain(recipe: Recipe) -> Recipe:
    """The recipe of the first target of a chain, as far as the run folders of all are there."""
    larger = _larger_target(recipe) if is_chained(recipe) else None
    return recipe if larger is None else _first_of_chain(larger)


def _larger_target(recipe: Recipe) -> Recipe | None:
    """The recipe of the larger target that a run in a chain prunes; None where it is not there."""
    folder = Path(str(recipe.model.source)).parent
    larger = saved_recipe(folder)
    return None if larger is None else rebased(larger, folder)


def untrained_reference_loss(recipe: Recipe) -> dict[str, float]:
    """The reference losses in nats of the domains that are only evaluated, where there are any."""
    scheduling = recipe.scheduling
    losses: Mapping[str, float] = scheduling.started_reference_loss or {}
    if isinstance(scheduling.reference_loss, Mapping):
        losses = scheduling.reference_loss
    elif recipe.reference_origin == "source" and recipe.untrained:
        losses = _measured(recipe)
    return {name: losses[name] for name in recipe.untrained if name in losses}


def teacher_loss(recipe: Recipe, phase: str) -> dict[str, float]:
    """Domain -> nats of a phase's teacher; empty unless it is one model that was measured."""
    teachers = list(recipe.teachers(phase))
    with suppress(BadInput):
        if teachers == [_first_of_chain(recipe).model.reference]:
            begun = _begun_in(recipe)
            # The log of pruning does not count in pruning itself: only a resumed run would have it.
            measured = RunFolder(begun).reference_loss.is_file() or begun != Path(recipe.output)
            known = measured or phase != "prune"
            return source_losses(begun, recipe.data.domains) if known else {}
        if teachers and (named := recipe.reference_models) and named.models == teachers:
            return _measured(recipe)
    return {}


def reference_text(
    recipe: Recipe, name: str, sizes: Mapping[str, int] | None = None, final: int | None = None
) -> str:
    """Say in one line which reference losses are in force in a phase, and why.

    Args:
        recipe: With that phase.
        name: Of the phase.
        sizes: Models that are named for reference losses -> their parameters, as far as known.
        final: Parameters at which a law over sizes is read off, where known.

    Returns:
        The line; empty where the policy compares with no reference loss.
    """
    if recipe.scheduling.policy not in COMPARING:
        return ""
    first = _first_reference_text(recipe, name, sizes or {}, final)
    scheduling = recipe.scheduling
    if scheduling.policy != "drpruning" or scheduling.forecast == "never":
        return first
    begin = math.ceil((scheduling.forecast_start or 0.0) * recipe.phases[name].steps)
    assumed = {
        "equal": "if the rest of it gave all domains the same share",
        "reference": "if the rest of it kept the reference ratio",
        "present": "if it continues as it is",
    }[scheduling.forecast_at or "equal"]
    also, how = ("", "") if recipe.forecasts else ("also ", "; then both count")
    return (
        f"{first or 'none'}; from step {begin:,} on, {also}forecasts of the losses at the end "
        f"of {name} {assumed}{how}"
    )


def _first_reference_text(
    recipe: Recipe, name: str, sizes: Mapping[str, int], final: int | None
) -> str:
    """The reference losses at the beginning of a phase; empty where there are none."""
    scheduling = recipe.scheduling
    handed_over = name != next(iter(recipe.phases)) and scheduling.handover == "continue"
    if handed_over and recipe.forecasts:
        return "those that pruning ended with (handover: continue)"
    if recipe.reference_origin == "source":
        word = scheduling.reference_loss
        why = "auto, as a model is pruned here" if word == "auto" else word
        return f"the losses of the model that is pruned (reference_loss: {why})"
    if (models := recipe.reference_models) is not None:
        named = [f"{m} ({sizes[m]:,} parameters)" if m in sizes else m for m in models.models]
        at = f", at {final:,} parameters" if final is not None else ""
        origin = f"law over {', '.join(named)}{at}" if models.from_models else f"from {named[0]}"
        if scheduling.reference_models is None:
            origin = f"{origin}, the teacher (reference_loss: auto)"
        return f"{origin}; measured before training"
    if recipe.reference_origin == "given":
        return "numbers in the recipe"
    if recipe.reference_origin == "start":
        return "scheduling.start"
    return "0 nats for every domain" if scheduling.policy == "naive_dro" else ""


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
    # `smallest_reference` moves with the reference ratio, so it has no bound to compare with.
    if start.ratio and scheduling.floor not in (None, SMALLEST_REFERENCE):
        floors = scheduling.floors(recipe.initial_ratio)
        for domain, share in start.ratio.items():
            if share < floors[domain] * (1 - SHARES_TOLERANCE):
                raise BadInput(
                    f"scheduling.start.ratio: {share:.4g} for {domain} is below scheduling.floor "
                    f"({floors[domain]:.4g}); write a smaller floor, or leave ratio out"
                )
