"""What a recipe will do and whether it can: shapes, tokens, epochs, memory. No weights are loaded.

Everything here comes from configs, file sizes and arithmetic, so it runs on a machine without
GPUs, without torch, and for local files without a network.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput, shown
from drpruning.common.files import unreadable
from drpruning.data import (
    DomainSource,
    PreparedData,
    check_prepared_folder,
    check_sources,
    estimate_tokens,
    skipped_lines,
)
from drpruning.models.auxiliary_files import generation_warnings
from drpruning.models.files import INDEX, WEIGHTS
from drpruning.models.inspect import (
    SOURCE_FIELD,
    check_weights,
    code_warnings,
    resolve_target,
    source_config,
    source_shape,
)
from drpruning.models.memory import MemoryEstimate, estimate_memory
from drpruning.models.tokenizer import check_tokenizer, tokenizer_warnings
from drpruning.pipeline.domain_plans import DomainPlan, plan_domains, repetition_warnings
from drpruning.pipeline.plan_warnings import (
    client_warnings,
    floor_warning,
    length_warning,
    sparsity_warnings,
    update_warnings,
)
from drpruning.pipeline.prepared import (
    complete_data,
    documents_line,
    domain_sources,
    missing_text,
    missing_text_warnings,
)
from drpruning.pipeline.reference_losses import check_reference_models
from drpruning.pipeline.teachers import SourceModel, Teacher, plan_teacher, teacher_warnings
from drpruning.pruning import ModelShape, Proposal
from drpruning.recipe import Recipe, ReferenceModels, Target
from drpruning.recipe.phases import PHASES
from drpruning.runs.folder import (
    RunFolder,
    finished_phases,
    saved_recipe,
)
from drpruning.runs.output_checks import check_apart, check_output
from drpruning.runs.policy import phase_policy
from drpruning.runs.reference_losses import ReferenceLosses


@dataclass
class RunPlan:
    """What was found about a recipe, for all who run it; `problems` is empty where it can run."""

    recipe: Recipe
    """With the dimensions of every target, as far as they could be found."""
    saved: Recipe | None = None
    """That of the run which is in the output folder."""
    config: dict[str, Any] = field(default_factory=dict)
    """The source's config.json."""
    source: ModelShape | None = None
    target: ModelShape | None = None
    proposals: dict[str, list[Proposal]] = field(default_factory=dict)
    """Field with a parameter budget -> shapes for it; the first is the target."""
    sources: list[DomainSource] = field(default_factory=list)
    """Where the text of each domain is."""
    prepared: PreparedData | None = None
    """What was prepared before, where it is complete and of the recipe's settings."""
    missing_text: list[str] = field(default_factory=list)
    """Domains of which only the prepared data are there."""
    domains: dict[str, DomainPlan] = field(default_factory=dict)
    documents: str = ""
    """What is done with each document beside splitting it into tokens, in one line."""
    memory: dict[str, MemoryEstimate] = field(default_factory=dict)
    """Phase -> estimated bytes per GPU, those of teachers among them."""
    teachers: dict[str, list[Teacher]] = field(default_factory=dict)
    """Phase that is still to be done -> its teachers."""
    guessed_shares: bool = False
    """Whether shares follow from the size of text that is not prepared yet, and so may change."""
    evaluations: dict[str, int] = field(default_factory=dict)
    """Phase -> evaluations, each with one ratio update."""
    reference_models: dict[str, int] = field(default_factory=dict)
    """Models that the reference losses are from -> their number of parameters."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data_warnings: list[str] = field(default_factory=list)
    """Warnings about the text that are said again, from what was read, once it is prepared."""

    @property
    def is_finished(self) -> bool:
        """Whether the output folder holds a run of which no phase is left to be done."""
        done = {} if self.saved is None else finished_phases(self.recipe, Path(self.recipe.output))
        return self.saved is not None and done.keys() >= self.recipe.phases.keys()

    @property
    def final_shape(self) -> ModelShape:
        """Shape of the model at the end of the run.

        Raises:
            BadInput: It could not be found out; the problems say why.
        """
        shape = self.source if self.recipe.model.target is None else self.target
        if shape is None:
            raise BadInput("\n".join(self.problems))
        return shape

    def student(self, phase: str) -> ModelShape:
        """Shape of the model that is trained in a phase: under masks the source's.

        Raises:
            BadInput: It could not be found out; the problems say why.
        """
        return self.source if phase == "prune" and self.source is not None else self.final_shape

    @contextmanager
    def collected(self, label: str = "") -> Iterator[None]:
        """Add what goes wrong in the block to the problems.

        Args:
            label: The field whose files the block reads.
        """
        try:
            yield
        except BadInput as error:
            self._add(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            place = f"{label}: {error.filename}" if label else shown(error.filename)
            if isinstance(error, PermissionError):
                self._add(str(unreadable(place, error)))
            else:
                self._add(f"{place}: {error.strerror}; name another place")

    def _add(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def plan_run(recipe: Recipe, known: RunPlan | None = None) -> RunPlan:
    """Look at everything that can be known before anything is computed.

    Args:
        recipe: The run.
        known: The plan of another run of the same text, which is then not looked for again; nor
            is the source model's config.json read again, if it has the same.

    Returns:
        Numbers, warnings, and every problem found (not only the first).
    """
    plan = RunPlan(recipe)
    with plan.collected():
        plan.saved = saved_recipe(Path(recipe.output))
    with plan.collected(SOURCE_FIELD):
        same = known is not None and known.recipe.model.reference == recipe.model.reference
        plan.config = known.config if known and same and known.config else source_config(recipe)
        plan.source = source_shape(recipe, plan.config)
        plan.warnings += length_warning(recipe, plan.config) + code_warnings(recipe, plan.config)
        if plan.config is not recipe.model.shape:
            plan.warnings += generation_warnings(recipe.model.reference, SOURCE_FIELD)
    if plan.source is not None:
        _resolve_targets(plan, plan.source)
        _plan_model(plan, plan.source)
    _find_text(plan, known)
    recipe = _size_domains(plan)
    with plan.collected():
        plan.documents = documents_line(recipe)
    for label, check in _checks(plan):
        with plan.collected(label):
            check()
    if (models := recipe.reference_models) is not None:
        with plan.collected():
            plan.reference_models = _reference_models(recipe, models)
    if plan.source is not None:
        _plan_teachers(plan, plan.source, known)
    plan.evaluations = {
        name: -(-phase.steps // phase.evaluate_every) + 1 for name, phase in recipe.phases.items()
    }
    with plan.collected():
        shared = known.domains if known is not None else {}
        plan.domains = shared or plan_domains(recipe, plan.sources, plan.prepared)
    plan.data_warnings += repetition_warnings(plan.domains)
    plan.warnings += floor_warning(recipe) + update_warnings(recipe)
    return plan


def _checks(plan: RunPlan) -> list[tuple[str, Callable[[], None]]]:
    """What could make the run fail, each with the field whose files it reads."""
    recipe, shape = plan.recipe, plan.source
    tokenizer = SOURCE_FIELD if recipe.model.tokenizer is None else "model.tokenizer"
    present = [source for source in plan.sources if source.name not in plan.missing_text]
    checks: list[tuple[str, Callable[[], None]]] = [
        ("", lambda: check_sources(present) if present else None),
        ("", lambda: check_output(recipe, plan.saved)),
        ("", lambda: check_apart(recipe, plan.sources)),
        ("", lambda: check_prepared_folder(recipe.prepared_folder)),
        ("", lambda: check_results(RunFolder(Path(recipe.output)))),
        ("", lambda: _check_policy(recipe)),
    ]
    if shape is not None:
        name, source = recipe.model.tokenizer_source, recipe.model.reference
        # A shape in the recipe is no config.json: that may say more of what loading would follow.
        config = None if plan.config is recipe.model.shape else plan.config

        def look_at_tokenizer() -> None:
            check_tokenizer(name, shape, tokenizer)
            plan.warnings += tokenizer_warnings(name, source, shape, plan.config, tokenizer)

        checks.append((tokenizer, look_at_tokenizer))
        checks.append((SOURCE_FIELD, lambda: check_weights(source, shape, SOURCE_FIELD, config)))
    return checks


def _find_text(plan: RunPlan, known: RunPlan | None) -> None:
    """Find the text of the domains, and what was prepared of it, which can do without."""
    if known is not None:
        plan.sources, plan.prepared = known.sources, known.prepared
        plan.missing_text = known.missing_text
        return
    with plan.collected():
        plan.sources = domain_sources(plan.recipe)
        plan.prepared = complete_data(plan.recipe, plan.sources)
        if plan.prepared is not None:
            plan.missing_text = missing_text(plan.prepared, plan.sources)
    plan.warnings += missing_text_warnings(plan.sources, plan.missing_text)
    with plan.collected():
        present = [source for source in plan.sources if source.name not in plan.missing_text]
        plan.data_warnings += skipped_lines(present)


def _size_domains(plan: RunPlan) -> Recipe:
    """Put the shares of the domains without one into the plan's recipe, and return that.

    They are exact once the data are prepared. Before that the text is estimated; where that cannot
    be done, it counts as much as the average of the others.
    """
    recipe = plan.recipe
    if not (unsized := recipe.data.unsized):
        return recipe
    sizes: dict[str, float] = {}
    if plan.prepared is not None:
        sizes = {name: plan.prepared.domains[name].train_tokens for name in unsized}
    else:
        plan.guessed_shares = True
        with plan.collected():
            for source in plan.sources:
                tokens = estimate_tokens(source, recipe.model.tokenizer_source)
                if source.name in unsized and tokens:
                    sizes[source.name] = tokens
        average = math.fsum(sizes.values()) / len(sizes) if sizes else 1.0
        unknown = [name for name in unsized if name not in sizes]
        sizes |= dict.fromkeys(unknown, average)
        guess = f", and that of {', '.join(unknown)} not at all" if unknown else ""
        plan.warnings.append(
            f"data.smoothing: the size of the text is only estimated before it is prepared{guess}; "
            "the shares follow from what `drprune prepare` counts"
        )
    plan.recipe = recipe.with_sizes(sizes)
    return plan.recipe


def check_results(files: RunFolder) -> None:
    """Refuse a run folder in which the model that a phase wrote is not complete any more.

    Raises:
        BadInput: A model folder has no config.json or no weights.
    """
    for phase in PHASES:
        folder = files.result(phase)
        if not folder.is_dir():
            continue
        lacking = "" if (folder / "config.json").is_file() else "config.json"
        if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
            lacking = lacking or WEIGHTS
        if lacking:
            raise BadInput(
                f"{folder}: the model that {phase} wrote is not complete (no {lacking}); put it "
                f"back, or remove the folder to {phase} again"
            )


def _reference_models(recipe: Recipe, models: ReferenceModels) -> dict[str, int]:
    """Model -> parameters, from what the run has measured, or else from the models' files."""
    folder = Path(recipe.output)
    if not RunFolder(folder).reference_loss.is_file():
        return check_reference_models(models, recipe.model.tokenizer_source)
    measured = ReferenceLosses.read(folder, models, recipe.initial_ratio)
    measured.usable()
    return {model.path: model.parameters for model in measured.models}


def _resolve_targets(plan: RunPlan, source: ModelShape) -> None:
    """Put the dimensions of every target into the plan's recipe; those of a begun run stand."""
    model = plan.recipe.model
    begun = model if plan.saved is None else plan.saved.model

    def resolved(target: Target, chosen: Target | None, field: str) -> Target:
        with plan.collected(field):
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


def _plan_model(plan: RunPlan, source: ModelShape) -> None:
    """Find the shape that is pruned to, and the memory of both phases."""
    recipe = plan.recipe
    if recipe.model.target is not None and recipe.model.target.is_resolved:
        with plan.collected():
            try:
                target = source.pruned_to(**recipe.model.target.dimensions())
            except BadInput as error:
                raise BadInput(f"model.target: {error}") from None
            if target == source:
                raise BadInput("model.target: is the source's own shape; nothing would be pruned")
            plan.target = target
            plan.warnings += sparsity_warnings(source, target) + client_warnings(source, target)
    memory = partial(
        estimate_memory, training=recipe.training, sequence_length=recipe.data.sequence_length
    )
    if recipe.prune is not None:
        distilled = recipe.distillation("prune") is not None
        plan.memory["prune"] = memory(source, masked=True, distilled=distilled)
    if recipe.pretrain is not None:
        shape = plan.target or source
        distilled = recipe.distillation("pretrain") is not None
        plan.memory["pretrain"] = memory(shape, masked=False, distilled=distilled)


def _plan_teachers(plan: RunPlan, source: ModelShape, known: RunPlan | None) -> None:
    """Find the teachers of the phases to come, and add their memory to that of the phases."""
    recipe = plan.recipe
    own = _source_model(recipe, source, plan.config)
    first = None
    if known is not None and known.source is not None:
        first = _source_model(known.recipe, known.source, known.config)
    done = {} if plan.saved is None else finished_phases(recipe, Path(recipe.output))
    for phase in [name for name in recipe.phases if name not in done]:
        found = plan.teachers[phase] = []
        for name in recipe.teachers(phase):
            with plan.collected(f"{phase}.distill"):
                found.append(plan_teacher(recipe, phase, name, own, first))
        for teacher in found:
            plan.memory[phase] += teacher.memory
        if plan.target is not None or recipe.prune is None:
            student, final = plan.student(phase), plan.final_shape
            plan.warnings += teacher_warnings(phase, student, final, found, recipe.training)


def _source_model(recipe: Recipe, shape: ModelShape, config: dict[str, Any]) -> SourceModel:
    name = recipe.model.reference
    return SourceModel(name, "model.shape" if recipe.model.source is None else name, shape, config)


def _check_policy(recipe: Recipe) -> None:
    """Refuse settings that the policy does not take; the phases differ in their steps alone."""
    unknown = dict.fromkeys(recipe.initial_ratio, 1.0)  # reference losses are measured later
    phase = next(iter(recipe.phases.values()))
    phase_policy(recipe, phase, final_params=1.0, reference_loss=unknown)
