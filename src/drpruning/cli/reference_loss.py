"""`drprune reference-loss`: measure models on the validation blocks of a recipe or a run."""

from pathlib import Path

from drpruning.cli.app import expand_home
from drpruning.common.errors import BadInput
from drpruning.pipeline.reference_losses import (
    check_reference_models,
    measure_reference_losses,
    reference_losses_table,
)
from drpruning.pipeline.run import Run, open_prepared
from drpruning.recipe import ReferenceModels
from drpruning.recipe.paths import escape_path
from drpruning.recipe.yaml_io import dump_yaml
from drpruning.runs.folder import open_recipe
from drpruning.runs.reference_losses import MeasuredModel, ReferenceLosses
from drpruning.runs.schedule_start import check_start_file, next_command, start_text, write_start

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
        BadInput: Recipe, run or models cannot be used, there are no models, or the file cannot be
            written. Where no law describes what was measured, the file has it in comments alone.
    """
    if len(models) == 2 or len(set(models)) < len(models):
        raise BadInput("--model: name one model, or three or more different sizes of a family")
    wanted = None
    if models := [escape_path(expand_home(model)) for model in models]:
        one = len(models) == 1
        wanted = (
            ReferenceModels(from_model=models[0]) if one else ReferenceModels(from_models=models)
        )
    if output is None:
        name = f"{target.stem}.{_DEFAULT_FILE}"
        output = target / _DEFAULT_FILE if target.is_dir() else target.with_name(name)
    if target.is_dir():
        if overrides:
            raise BadInput(f"--set: {target} is a run, which stays as it is; name a recipe")
        run = open_prepared(target)
        found = _reference_losses(run, wanted, parameters, output)
    else:
        with Run(open_recipe(target, overrides)).session(None) as run:
            found = _reference_losses(run, wanted, parameters, output)
    run.reporter.console.print(reference_losses_table(found))
    start = {} if found.reference_loss is None else {"reference_loss": found.reference_loss}
    if run.accelerator.is_main_process:
        write_start(output, start, _comments(found))
    if not start:
        run.reporter.line(f"saved what was measured, as comments: {output}")
    found.usable()
    run.reporter.line(start_text({"scheduling": start}))
    run.reporter.line(next_command(output))


def _reference_losses(
    run: Run, wanted: ReferenceModels | None, parameters: int | None, output: Path
) -> ReferenceLosses:
    """Measure the models wanted, or else the recipe's, but for those that the run has measured."""
    models = wanted or run.recipe.reference_models
    if models is None:
        raise BadInput(
            "scheduling.reference_loss: names no models to measure; name some there, or with "
            "--model MODEL"
        )
    if parameters is not None and models.from_model is not None:
        raise BadInput("--params: one model has no law over sizes; name three or more")
    if run.accelerator.is_main_process:
        check_start_file(output)
    measured: list[MeasuredModel] = []
    own = run.recipe.reference_models
    if own is not None and run.files.reference_loss.is_file():
        found = ReferenceLosses.read(run.folder, own, run.recipe.initial_ratio)
        if wanted is None and parameters is None:
            return found
        measured = found.models
    if not {model.path for model in measured} >= set(models.models):
        check_reference_models(models, run.recipe.model.tokenizer_source)
    return measure_reference_losses(
        models,
        run.recipe,
        run.data,
        run.accelerator,
        run.reporter,
        parameters or run.plan.final_shape.num_parameters(),
        measured,
    )


def _comments(found: ReferenceLosses) -> list[str]:
    """Comments for the file: every measured loss, to the bit, and what was made of them."""
    law = f"; the law over them at {found.parameters:,} parameters" if found.law else ""
    lines = [f"reference losses: from the models below{law}"]
    if found.reference_loss is None:
        lines = ["no reference losses: no law over sizes describes those of the models below"]
    for model in found.models:
        losses = dump_yaml(model.loss, default_flow_style=True)
        lines.append(f"{model.path} ({model.parameters:,} parameters): {losses.strip()}")
    return lines
