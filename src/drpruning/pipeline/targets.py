"""A recipe with several targets: one ordinary run for each, the largest first.

Each target has its run folder OUTPUT/NAME with a recipe of its own; the tokenized blocks in
OUTPUT/data are shared. A target that is contained in a larger one is pruned from that one's cut
model, so its masks start where those ended, at the cost of a smaller model's step.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write
from drpruning.pipeline.preflight import RunPlan, check_results, plan_run
from drpruning.pipeline.reference_losses import measure_reference_losses
from drpruning.pipeline.run import Run, show_table
from drpruning.pipeline.task_evaluation import complain_of_failures
from drpruning.pruning import ModelShape
from drpruning.pruning.shapes import PRUNABLE
from drpruning.recipe import Phase, Recipe, Target
from drpruning.report import write_report
from drpruning.runs.folder import RunFolder, rollback_on_error, saved_recipe
from drpruning.runs.provenance import note_session
from drpruning.runs.reference_losses import ReferenceLosses


@dataclass
class RecipePlan:
    """What a recipe with one or several targets will do."""

    recipe: Recipe
    """With the dimensions of every target as far as they could be found, the largest first."""
    plans: dict[str, RunPlan] = field(default_factory=dict)
    """Title -> plan of the target, in the order in which they run; one without a title where the
    recipe has one target or none."""
    problems: list[str] = field(default_factory=list)
    """Everything that cannot work."""
    guessed_shares: bool = False
    """Whether shares follow from the size of text that is not prepared yet, and so may change."""


def plan_recipe(recipe: Recipe) -> RecipePlan:
    """Look at everything that can be known of a recipe before anything is computed.

    Args:
        recipe: With one target, several, or none.
    """
    common = plan_run(recipe)
    model = common.recipe.model
    plan = RecipePlan(common.recipe, {"": common}, list(common.problems), common.guessed_shares)
    if model.targets is None:
        return plan
    plan.plans = {}
    if common.source is None or not all(target.is_resolved for target in model.targets.values()):
        return plan
    try:
        for name in model.targets:
            check_results(RunFolder(Path(recipe.output) / name))
        runs = _split(common)
    except BadInput as error:
        plan.problems.append(str(error))
        return plan
    in_order = {"targets": {name: model.targets[name] for name in runs}}
    plan.recipe = common.recipe.model_copy(update={"model": model.model_copy(update=in_order)})
    for name, own in runs.items():
        part = plan_run(own, known=common)
        key = f"model.targets.{name}"
        part.proposals = {k: shapes for k, shapes in common.proposals.items() if k == key}
        start = own.model.source if own.model.source != recipe.model.source else "the source"
        plan.plans[f"target {name}: from {start}"] = part
        plan.problems += [f"{key}: {p}" for p in part.problems if p not in common.problems]
    return plan


def run_recipe(recipe: Recipe, command: str, stages: Sequence[str], *, plain: bool = False) -> None:
    """Run stages of a recipe: of each of its targets in turn, where it has several.

    Args:
        recipe: With one target, several, or none.
        command: What was started, for sessions.jsonl.
        stages: Some of `drpruning.pipeline.run.STAGES`.
        plain: Whether to print lines on a terminal too, in place of a live view.

    Raises:
        BadInput: Something in the recipe cannot work; every problem found is named.
        EvaluationIncomplete: A task could not be run; everything else was done.
        Interrupted: A signal asked to stop; the state is saved, and the same call resumes.
    """
    if recipe.model.targets is None:
        with Run(recipe, plain).session(command) as run:
            run.run(stages)
        complain_of_failures(run.failed_tasks)
        return
    plan = plan_recipe(recipe)
    if plan.problems:
        raise BadInput("\n".join(plan.problems))
    if plan.guessed_shares:
        part = next(iter(plan.plans.values()))
        preparing = Run(part.recipe, plain)
        preparing.plan = replace(part, warnings=[])
        with preparing.session(None):
            preparing.data  # noqa: B018 - prepares them, and with them the shares are known
        plan = plan_recipe(recipe)
    parts = list(plan.plans.values())
    first, *others = (part.recipe for part in parts)
    run = Run(first, plain)
    run.plan = parts[0]
    run.accelerator.wait_for_everyone()  # every rank has checked the folder; now one writes
    main = run.accelerator.is_main_process
    with rollback_on_error(Path(recipe.output)) if main else nullcontext():
        if main:
            finished = all(part.is_finished for part in parts)
            _begin(plan.recipe, command, run.accelerator.num_processes, finished=finished)
        with run.session(command):
            data = run.data
            run.run(stages)
    failed = dict(run.failed_tasks)
    others = others if set(stages) - {"prepare"} else []
    for own in others:
        run = Run(own, plain)
        # Looked at again: what it is pruned from, the larger target's model, has been made since.
        run.plan = plan_run(own, known=parts[0])
        run.plan.warnings = [w for w in run.plan.warnings if w not in parts[0].warnings]
        run.data = data
        with run.session(command):
            _take_reference_losses(run, Path(first.output))
            run.run([stage for stage in stages if stage != "prepare"])
        failed |= run.failed_tasks
    if "report" in stages and run.accelerator.is_main_process:
        folders = [Path(own.output) for own in (first, *others)]
        page = write_report(folders, RunFolder(Path(recipe.output)).report)
        show_table(folders, run.reporter)
        run.reporter.line(f"report: {page}")
    complain_of_failures(failed)


def run_folders(folders: Iterable[Path]) -> list[Path]:
    """Replace folders that hold a run for each of several targets by those runs.

    Args:
        folders: Of runs, of several targets, or anything else, which stays.

    Raises:
        BadInput: None of the targets of a folder has been begun.
    """
    found = []
    for folder in folders:
        recipe = saved_recipe(folder) if RunFolder(folder).has_recipe else None
        if recipe is None or recipe.model.targets is None:
            found.append(folder)
            continue
        runs = [folder / name for name in recipe.model.targets]
        begun = [run for run in runs if RunFolder(run).recipe.is_file()]
        if not begun:
            raise BadInput(f"{folder}: none of its targets has been begun; see `drprune run`")
        found += begun
    return found


def _split(plan: RunPlan) -> dict[str, Recipe]:
    """A recipe for each target, from the largest to the smallest.

    Args:
        plan: The source's shape is known, and the targets of its recipe are resolved.

    Raises:
        BadInput: The source cannot be pruned to a target, or two targets have one shape.
    """
    recipe, source = plan.recipe, plan.source
    assert source is not None  # noqa: S101 - the caller saw to it
    targets = recipe.model.targets or {}
    shapes = {name: _shape(source, name, target) for name, target in targets.items()}
    order = sorted(shapes, key=lambda name: -shapes[name].num_parameters())
    runs: dict[str, Recipe] = {}
    for position, name in enumerate(order):
        own: dict[str, Any] = {"target": targets[name], "targets": None}
        phases: dict[str, Phase] = {}
        seed = recipe.training.seed
        before = {other: shapes[other] for other in order[:position]}
        larger = _next_larger(name, before, shapes[name])
        if larger is not None and recipe.model.nested:
            own["source"] = str(RunFolder(Path(recipe.output) / larger).pruned)
            # Which layers will stay is not known yet, so neither are their types.
            known = {key: value for key, value in plan.config.items() if key != "layer_types"}
            own["shape"] = known | shapes[larger].config_fields()
            own["tokenizer"] = recipe.model.tokenizer_source
            own["revision"] = None
            phases = _taught_by_the_first(recipe)
            # The cut model has read the blocks in one order; it now reads them in another.
            seed = runs[larger].training.seed + 1
            if recipe.pretrain is None:  # its cut model is a start too, which is not rounded
                start = runs[larger].model.model_copy(update={"dtype": "float32"})
                runs[larger] = runs[larger].model_copy(update={"model": start})
        runs[name] = recipe.model_copy(
            update=phases
            | {
                "model": recipe.model.model_copy(update=own),
                "data": recipe.data.model_copy(update={"prepared": str(recipe.prepared_folder)}),
                "training": recipe.training.model_copy(update={"seed": seed}),
                "output": str(Path(recipe.output) / name),
            }
        )
    return runs


def _taught_by_the_first(recipe: Recipe) -> dict[str, Phase]:
    """The phases whose teacher is the model that is pruned, with that of `recipe` named.

    A target that is pruned from a larger one has another source, and the same teacher.
    """
    return {
        name: phase.model_copy(
            update={"distill": distill.model_copy(update={"teacher": recipe.model.reference})}
        )
        for name, phase in recipe.phases.items()
        if (distill := recipe.distillation(name)) and not (distill.named or distill.is_self)
    }


def _shape(source: ModelShape, name: str, target: Target) -> ModelShape:
    try:
        return source.pruned_to(**target.dimensions())
    except BadInput as error:
        raise BadInput(f"model.targets.{name}: {error}") from None


def _next_larger(name: str, larger: dict[str, ModelShape], shape: ModelShape) -> str | None:
    """The smallest of the larger targets that this one can be cut out of."""
    for other, its_shape in reversed(larger.items()):
        if its_shape == shape:
            raise BadInput(f"model.targets: {other} and {name} have the same shape; drop one")
        try:
            its_shape.pruned_to(**{dimension: getattr(shape, dimension) for dimension in PRUNABLE})
        except BadInput:
            continue
        return other
    return None


def _begin(recipe: Recipe, command: str, ranks: int, *, finished: bool) -> None:
    """Write the recipe of all targets, whose dimensions do not change from now on.

    Where all of them are finished, it stays as it was when they were run.
    """
    folder = RunFolder(Path(recipe.output))
    folder.path.mkdir(parents=True, exist_ok=True)
    note_session(folder, command, ranks)
    if not (finished and folder.recipe.is_file()):
        atomic_write(folder.recipe, recipe.to_yaml())


def _take_reference_losses(run: Run, first: Path) -> None:
    """Take the losses of reference models from the first run, which has measured them.

    Those of the model that is pruned are taken too: every target is compared with the model that
    the first one was pruned from, also a target that is pruned from a larger one.
    """
    models, domains = run.recipe.reference_models, run.recipe.initial_ratio
    known = RunFolder(first).reference_loss.is_file() and not run.files.reference_loss.is_file()
    if run.recipe.reference_origin == "source" and known:
        if run.accelerator.is_main_process:
            ReferenceLosses.read(first, None, run.recipe.data.domains).write(run.folder)
    elif models is not None and known:
        measured = ReferenceLosses.read(first, models, domains).models
        found = measure_reference_losses(
            models,
            run.recipe,
            run.data,
            run.accelerator,
            run.reporter,
            run.plan.final_shape.num_parameters(),
            measured,
        )
        run.accelerator.wait_for_everyone()
        if run.accelerator.is_main_process:
            found.write(run.folder)
    run.accelerator.wait_for_everyone()
