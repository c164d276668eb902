"""What a recipe will do and whether it can: shapes, tokens, epochs, memory. No weights are loaded.

Everything here comes from configs, file sizes and arithmetic, so it runs on a machine without
GPUs, without torch, and for local files without a network.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput, shown
from drpruning.data import (
    DomainSource,
    PreparedData,
    check_prepared_folder,
    check_sources,
    estimate_tokens,
    may_be_hub_name,
)
from drpruning.models.inspect import (
    SOURCE_FIELD,
    check_tokenizer,
    check_weights,
    code_warnings,
    resolve_target,
    source_config,
    source_shape,
)
from drpruning.models.memory import MemoryEstimate, estimate_memory
from drpruning.pipeline.reference_losses import check_reference_models
from drpruning.pruning import ModelShape, Proposal
from drpruning.recipe import Domain, Phase, Recipe, ReferenceModels, Target
from drpruning.runs.folder import RunFolder, check_apart, check_output, saved_recipe
from drpruning.runs.policy import phase_policy
from drpruning.runs.reference_losses import ReferenceLosses
from drpruning.scheduling import FORECAST_START, MIN_POINTS

LARGEST_SPARSITY = 0.95
"""Expected sparsity of masks at the lower end of their range."""
LITTLE_FREEDOM = 0.1
"""Share of the data that must be free to move between domains for steering to mean something."""


@dataclass(frozen=True)
class DomainPlan:
    """What one domain gives and what is asked of it under the initial ratio.

    Attributes:
        share: Initial share.
        planned: Tokens trained on, both phases.
        available: Training tokens there are; None where that is not known yet.
        exact: Whether `available` was counted, not guessed from file sizes.
        used_up_at: (phase, step) at which it has been read once; None where it lasts.
        on_exhausted: What follows then; see docs/recipe.md.
    """

    share: float
    planned: int
    available: int | None
    exact: bool
    used_up_at: tuple[str, int] | None
    on_exhausted: str

    @property
    def epochs(self) -> float | None:
        """Passes over the domain; at most one where it does not repeat."""
        if not self.available:
            return None
        most = math.inf if self.on_exhausted == "repeat" else 1.0
        return min(self.planned / self.available, most)


@dataclass
class RunPlan:
    """The outcome of looking at a recipe; `problems` is empty where it can run."""

    recipe: Recipe
    """With the dimensions of every target, as far as they could be found."""
    source: ModelShape | None = None
    target: ModelShape | None = None
    proposals: dict[str, list[Proposal]] = field(default_factory=dict)
    """Field with a parameter budget -> shapes for it; the first is the target."""
    domains: dict[str, DomainPlan] = field(default_factory=dict)
    memory: dict[str, MemoryEstimate] = field(default_factory=dict)
    """Phase -> estimated bytes a GPU."""
    evaluations: dict[str, int] = field(default_factory=dict)
    """Phase -> evaluations, each with one ratio update."""
    reference_models: dict[str, int] = field(default_factory=dict)
    """Models that the reference losses are from -> their number of parameters."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def domain_sources(recipe: Recipe) -> list[DomainSource]:
    """The recipe's domains as the data package takes them, relative paths joined to data.root."""

    def place(text: str) -> str:
        root = recipe.data.root
        if root is None or text.startswith("~"):
            return text
        below = Path(root, text)
        if below.exists():
            return str(below)
        on_the_hub = may_be_hub_name(text) and not Path(text).exists()
        return text if on_the_hub else str(below.absolute())  # ROOT/NAME could be a name there

    def source(name: str, domain: Domain) -> DomainSource:
        return DomainSource(
            name=name,
            source=place(domain.source),
            text_field=domain.text_field,
            where=domain.where,
            validation=None if domain.validation is None else place(domain.validation),
            split=domain.split,
            config=domain.config,
        )

    return [source(name, domain) for name, domain in recipe.data.domains.items()]


def first_used_up(phases: dict[str, Phase], share: float, blocks: int) -> tuple[str, int] | None:
    """Phase and step at which a domain of this many blocks is used up under a constant share."""
    left = float(blocks)
    for name, phase in phases.items():
        a_step = share * phase.global_batch
        if a_step * phase.steps > left + 1e-9:
            return name, int(left / a_step) + 1
        left -= a_step * phase.steps
    return None


def plan_domains(recipe: Recipe, prepared: PreparedData | None = None) -> dict[str, DomainPlan]:
    """What each domain gives and what is asked of it."""
    length = recipe.data.sequence_length
    total = sum(p.steps * p.global_batch * length for p in recipe.phases.values())
    plans = {}
    for source in domain_sources(recipe):
        share = recipe.initial_ratio[source.name]
        if prepared is not None:
            blocks: int | None = len(prepared.domains[source.name].train)
        else:
            tokens = estimate_tokens(source)
            blocks = None if tokens is None else max(1, tokens // length)
        plans[source.name] = DomainPlan(
            share=share,
            planned=round(total * share),
            available=None if blocks is None else blocks * length,
            exact=prepared is not None,
            used_up_at=None if blocks is None else first_used_up(recipe.phases, share, blocks),
            on_exhausted=recipe.data.domains[source.name].on_exhausted,
        )
    return plans


def repetition_warnings(domains: dict[str, DomainPlan]) -> list[str]:
    """One line for each domain that has less text than its share asks for."""
    lines = []
    for name, plan in domains.items():
        if plan.used_up_at is None or plan.epochs is None:
            continue
        phase, step = plan.used_up_at
        about = "" if plan.exact else "about "
        place, when = f"data.domains.{name}: {about}{plan.available:,} tokens", f"{about}{step}"
        follows = {
            "repeat": f"will be used {plan.epochs:.1f} times; they run out at {phase} step {when}",
            "redistribute": f"run out at {phase} step {when}; the other domains get its share from "
            "there on",
            "stop": f"run out at {phase} step {when}; the next evaluation then ends {phase}, and "
            "every later phase at its start",
        }
        lines.append(f"{place} {follows[plan.on_exhausted]}")
    known = [plan.available for plan in domains.values() if plan.available is not None]
    planned = sum(plan.planned for plan in domains.values())
    rules = {plan.on_exhausted for plan in domains.values()}
    if len(known) == len(domains) and "repeat" not in rules and sum(known) < planned:
        lines.append(
            f"data.domains: {sum(known):,} tokens in all, {planned:,} planned, and no domain "
            "repeats; training ends where they do"
        )
    return lines


def plan_run(recipe: Recipe) -> RunPlan:
    """Look at everything that can be known before anything is computed.

    Args:
        recipe: The run.

    Returns:
        Numbers, warnings, and every problem found (not only the first).
    """
    plan = RunPlan(recipe)

    @contextmanager
    def collected() -> Iterator[None]:
        try:
            yield
        except BadInput as error:
            plan.problems.append(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            plan.problems.append(f"{shown(error.filename)}: {error.strerror}; name another place")

    with collected():
        config = source_config(recipe)
        plan.source = source_shape(recipe, config)
        plan.warnings += _length_warning(recipe, config) + code_warnings(recipe, config)
    if plan.source is not None:
        _resolve_targets(plan, plan.source, collected)
    recipe = plan.recipe
    checks: list[Callable[[], None]] = [
        lambda: check_sources(domain_sources(recipe)),
        lambda: check_output(recipe),
        lambda: check_apart(recipe, domain_sources(recipe)),
        lambda: check_prepared_folder(recipe.prepared_folder),
    ]
    if plan.source is not None:
        shape = plan.source
        tokenizer = SOURCE_FIELD if recipe.model.tokenizer is None else "model.tokenizer"
        checks.append(lambda: check_tokenizer(recipe.model.tokenizer_source, shape, tokenizer))
        checks.append(lambda: check_weights(str(recipe.model.source), shape, SOURCE_FIELD))
        _plan_model(recipe, plan, collected)
    checks.append(lambda: _check_policy(recipe))
    if (models := recipe.scheduling.reference_models) is not None:
        with collected():
            plan.reference_models = _reference_models(recipe, models)
    for check in checks:
        with collected():
            check()
    plan.evaluations = {
        name: -(-phase.steps // phase.evaluate_every) + 1 for name, phase in recipe.phases.items()
    }
    with collected():
        plan.domains = plan_domains(recipe, _already_prepared(recipe))
    plan.problems = list(dict.fromkeys(plan.problems))
    plan.warnings += repetition_warnings(plan.domains)
    plan.warnings += _floor_warning(recipe) + _update_warnings(recipe)
    return plan


def _reference_models(recipe: Recipe, models: ReferenceModels) -> dict[str, int]:
    """Model -> parameters, from what the run has measured, or else from the models' files."""
    folder = Path(recipe.output)
    if not RunFolder(folder).reference_loss.is_file():
        return check_reference_models(models, recipe.model.tokenizer_source)
    measured = ReferenceLosses.read(folder, models, recipe.data.domains)
    measured.usable()
    return {model.path: model.parameters for model in measured.models}


def _update_warnings(recipe: Recipe) -> list[str]:
    """Phases in which no forecast can be made in time, so that the ratio would never move."""
    scheduling = recipe.scheduling
    if scheduling.policy != "drpruning" or scheduling.has_reference_loss:
        return []
    begin = FORECAST_START if scheduling.forecast_start is None else scheduling.forecast_start
    lines = []
    for name, phase in recipe.phases.items():
        # Neither step 0 nor the last step counts.
        steps = range(phase.evaluate_every, phase.steps, phase.evaluate_every)
        if len(steps) >= MIN_POINTS and steps[-1] >= begin * phase.steps:
            if scheduling.handover == "continue":
                break  # the next phase begins with these forecasts
            continue
        lines.append(
            f"{name}.evaluate_every: the ratio would never move: without scheduling.reference_loss "
            f"it takes a forecast, that takes {MIN_POINTS} evaluations and scheduling."
            f"forecast_start ({begin:g}) of the steps, and no evaluation before the last step "
            f"({len(steps)} after step 0) has both behind it"
        )
    return lines


def _floor_warning(recipe: Recipe) -> list[str]:
    """Whether the floor leaves the ratio no room: by default it is the smallest reference share."""
    scheduling = recipe.scheduling
    if scheduling.floor is None or len(recipe.data.domains) == 1:
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


def _resolve_targets(
    plan: RunPlan, source: ModelShape, collected: Callable[[], AbstractContextManager[None]]
) -> None:
    """Put the dimensions of every target into the plan's recipe."""
    model = plan.recipe.model
    begun = model
    with collected():
        there = saved_recipe(Path(plan.recipe.output))
        begun = model if there is None else there.model

    def resolved(target: Target, chosen: Target | None, field: str) -> Target:
        with collected():
            target, proposals = resolve_target(target, source, chosen, field)
            if proposals:
                plan.proposals[field] = proposals
        return target

    update: dict[str, Any] = {}
    if model.target is not None:
        update["target"] = resolved(model.target, begun.target, "model.target")
    if model.targets is not None:
        update["targets"] = {
            name: resolved(target, (begun.targets or {}).get(name), f"model.targets.{name}")
            for name, target in model.targets.items()
        }
    plan.recipe = plan.recipe.model_copy(update={"model": model.model_copy(update=update)})


def _plan_model(recipe: Recipe, plan: RunPlan, collected: Callable[[], Any]) -> None:
    assert plan.source is not None  # noqa: S101 - the caller saw to it
    if recipe.model.target is not None and recipe.model.target.is_resolved:
        with collected():
            try:
                target = plan.source.pruned_to(**recipe.model.target.dimensions())
            except BadInput as error:
                raise BadInput(f"model.target: {error}") from None
            if target == plan.source:
                raise BadInput("model.target: is the source's own shape; nothing would be pruned")
            plan.target = target
            plan.warnings += _sparsity_warnings(plan.source, target)
    memory = partial(
        estimate_memory, training=recipe.training, sequence_length=recipe.data.sequence_length
    )
    if recipe.prune is not None:
        plan.memory["prune"] = memory(plan.source, masked=True)
    if recipe.pretrain is not None:
        shape = plan.target or plan.source
        plan.memory["pretrain"] = memory(shape, masked=False)


def _length_warning(recipe: Recipe, config: dict[str, Any]) -> list[str]:
    positions, length = config.get("max_position_embeddings"), recipe.data.sequence_length
    if not isinstance(positions, int) or length <= positions:
        return []
    line = f"{length} is beyond the {positions} positions that the model was made for"
    return [f"data.sequence_length: {line}"]


def _sparsity_warnings(source: ModelShape, target: ModelShape) -> list[str]:
    """Axes of which more is cut than hard-concrete masks can express in expectation."""
    return [
        f"model.target.{name}: {here} -> {there} removes more than "
        f"{100 * LARGEST_SPARSITY:.0f}%, which masks cannot reach; the cut will be abrupt"
        for name, (here, there) in source.differences(target).items()
        if isinstance(here, int) and isinstance(there, int) and 1 - there / here > LARGEST_SPARSITY
    ]


def _check_policy(recipe: Recipe) -> None:
    unknown = dict.fromkeys(recipe.data.domains, 1.0)  # reference losses are measured later
    for phase in recipe.phases.values():
        phase_policy(recipe, phase, final_params=1.0, reference_loss=unknown)


def _already_prepared(recipe: Recipe) -> PreparedData | None:
    folder = recipe.prepared_folder
    try:
        prepared = PreparedData.open(folder)
    except (BadInput, OSError):  # none, unfinished, or not ours: preparing says what is wrong
        return None
    same = prepared.sequence_length == recipe.data.sequence_length
    return prepared if same and set(prepared.domains) == set(recipe.data.domains) else None
