"""Reference losses from models: what their files say beforehand, and measuring them."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from drpruning.common.console import Reporter, make_table
from drpruning.common.errors import BadInput
from drpruning.data import PreparedData, tokenizer_digest
from drpruning.models.inspect import SOURCE_FIELD, check_model
from drpruning.models.tokenizer import vocabulary
from drpruning.recipe import Recipe, ReferenceModels
from drpruning.runs.folder import RunFolder, is_chained, saved_recipe
from drpruning.runs.reference_losses import MeasuredModel, ReferenceLosses

if TYPE_CHECKING:
    from accelerate import Accelerator


FIELD = "scheduling.reference_loss"


def check_reference_models(models: ReferenceModels, source: str) -> dict[str, int]:
    """Look at the files of the models without loading weights; torch is not needed.

    Args:
        models: What the recipe names.
        source: The source model, whose tokenizer they must share.

    Returns:
        Model -> number of parameters.

    Raises:
        BadInput: A model is missing, incomplete or of another vocabulary, or two have one size.
    """
    tokens = vocabulary(source, SOURCE_FIELD)
    sizes: dict[str, int] = {}
    for model in models.models:
        size = check_model(model, FIELD).num_parameters()
        if None not in (tokens, own := vocabulary(model, FIELD)) and tokens != own:
            raise _other_tokenizer(model)
        for other, other_size in sizes.items():
            if size == other_size:
                raise BadInput(
                    f"{FIELD}.from_models: {other} and {model} both have {size:,} parameters; "
                    "name models of different sizes"
                )
        sizes[model] = size
    return sizes


def original_model(recipe: Recipe) -> str:
    """The model that a run prunes; of a run in a chain of targets, that of the first one."""
    output = Path(recipe.output)
    if is_chained(recipe) and RunFolder(output.parent).has_recipe:
        with suppress(BadInput):
            chain = saved_recipe(output.parent)
            if chain is not None and output.name in (chain.model.targets or {}):
                return chain.model.reference
    return recipe.model.reference


def measure_reference_losses(
    models: ReferenceModels,
    recipe: Recipe,
    data: PreparedData,
    accelerator: "Accelerator",
    reporter: Reporter,
    parameters: int,
    known: Sequence[MeasuredModel] = (),
) -> ReferenceLosses:
    """Evaluate the models on the validation blocks of a run's trained domains, one by one.

    Args:
        models: What to measure.
        recipe: Gives precision and batch size.
        data: The validation blocks.
        accelerator: Devices and ranks; every rank gets the same result.
        reporter: Shows progress.
        parameters: Size at which a law over sizes is read off, all parameters counted.
        known: Models that have been measured on these blocks.

    Returns:
        What was measured; whether a law describes it, `ReferenceLosses.usable` says.

    Raises:
        BadInput: A model cannot be loaded, has another tokenizer or a loss that is not finite,
            or two have the same size.
    """
    from drpruning.training.perplexity import evaluate_perplexity

    measured = [model for model in known if model.path in models.models]
    unknown = [m for m in models.models if m not in {model.path for model in measured}]
    for model in unknown:
        if tokenizer_digest(model) != data.tokenizer_digest:
            raise _other_tokenizer(model)
    for model in unknown:
        found = evaluate_perplexity(
            Path(model).name,
            model,
            model,
            data,
            accelerator,
            reporter,
            recipe.training,
            field=FIELD,
        )
        losses = {domain: found.loss[domain] for domain in recipe.initial_ratio}
        for domain, loss in losses.items():
            if not 0 < loss < math.inf:
                raise BadInput(f"{FIELD}: the loss of {model} on {domain} is {loss}; name another")
        measured.append(MeasuredModel(model, found.parameters.total, losses))
    return ReferenceLosses.of(measured, parameters)


def reference_losses_table(found: ReferenceLosses) -> Table:
    """A table of each model's loss by domain, and of the law over their sizes if there is one."""
    names = [f"{Path(model.path).name}\n{model.parameters:,}" for model in found.models]
    table = make_table("loss (nats per token)", *names)
    if found.law is not None:
        table.add_column(f"law at\n{found.parameters:,}", justify="right", style="bold")
        table.add_column("a/N^b + c\nb, c", justify="right")
    for domain in found.models[0].loss:
        row = [f"{model.loss[domain]:.4f}" for model in found.models]
        if found.law is not None and found.reference_loss is not None:
            law = found.law[domain]
            row += [f"{found.reference_loss[domain]:.4f}", f"{law['b']:.3f}, {law['c']:.3f}"]
        table.add_row(domain, *row)
    if found.law is not None:
        miss = found.largest_miss()
        table.caption = f"The law misses a measured loss by {miss:.4f} nats at most."
    return table


def _other_tokenizer(model: str) -> BadInput:
    return BadInput(
        f"{FIELD}: the tokenizer of {model} is not that of model.source, so losses per token "
        "cannot be compared; name a model of the source's family"
    )
