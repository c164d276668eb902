"""`drprune reference-loss`: measure models on the validation blocks of a recipe or a run."""

from pathlib import Path

from drpruning.errors import BadInput
from drpruning.recipe import ReferenceModels, load_recipe
from drpruning.reference_losses import (
    check_reference_models,
    measure_reference_losses,
    reference_losses_table,
)
from drpruning.run import Run, run_as_it_is
from drpruning.schedule_export import start_text, write_start
from drpruning.training import REFERENCE_LOSS_FILE, ReferenceLosses

_DEFAULT_FILE = "reference-loss.yaml"


def compute_reference_losses(
    target: Path,
    models: list[str],
    overrides: list[str],
    parameters: int | None,
    output: Path | None,
) -> None:
    """Measure models on the validation blocks of a recipe or run; print and save what they give.

    Args:
        target: A recipe, whose data is prepared if need be, or a run folder.
        models: One model, or three or more sizes; none: those of the recipe.
        overrides: `key.path=value` assignments to fields of the recipe.
        parameters: Size at which the law over sizes is read off; None: that of the run's target.
        output: A file for `scheduling.start`; None: `reference-loss.yaml` in the run folder, or
            RECIPE`.reference-loss.yaml` beside the recipe.

    Raises:
        BadInput: Recipe, run or models cannot be used, or there are no models.
    """
    if len(models) == 2 or len(set(models)) < len(models):
        raise BadInput("--model: name one model, or three or more different sizes of a family")
    wanted = None
    if models:
        one = len(models) == 1
        wanted = (
            ReferenceModels(from_model=models[0]) if one else ReferenceModels(from_models=models)
        )
    if target.is_dir():
        if overrides:
            raise BadInput(f"--set: {target} is a run, which stays as it is; name a recipe")
        run = run_as_it_is(target)
        found = _reference_losses(run, wanted, parameters)
    else:
        with Run(load_recipe(target, overrides)).session(None) as run:
            found = _reference_losses(run, wanted, parameters)
    run.reporter.console.print(reference_losses_table(found))
    start = {"reference_loss": found.reference_loss}
    run.reporter.line(start_text({"scheduling": start}))
    if output is None:
        name = f"{target.stem}.{_DEFAULT_FILE}"
        output = target / _DEFAULT_FILE if target.is_dir() else target.with_name(name)
    if run.accelerator.is_main_process:
        write_start(output, start, [f"reference losses: {_origin(found)}"])
        run.reporter.line(f"saved: {output}; a recipe takes it as scheduling: {{start: {output}}}")


def _reference_losses(
    run: Run, wanted: ReferenceModels | None, parameters: int | None
) -> ReferenceLosses:
    """Of the models wanted, or else of the recipe's, which the run may have measured already."""
    models = wanted or run.recipe.scheduling.reference_models
    if models is None:
        raise BadInput(
            "scheduling.reference_loss: names no models to measure; name some there, or with "
            "--model MODEL"
        )
    if parameters is not None and models.from_model is not None:
        raise BadInput("--params: one model has no law over sizes; name three or more")
    if wanted is None and (run.folder / REFERENCE_LOSS_FILE).is_file():
        found = ReferenceLosses.read(run.folder, models)
        return found if parameters is None else ReferenceLosses.of(found.models, parameters)
    check_reference_models(models, str(run.recipe.model.source))
    return measure_reference_losses(
        models, run.recipe, run.data, run.accelerator, run.reporter, parameters
    )


def _origin(found: ReferenceLosses) -> str:
    names = ", ".join(model.path for model in found.models)
    return names if found.law is None else f"law over {names} at {found.parameters:,} parameters"
