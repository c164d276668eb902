"""Measures a model on the validation blocks of a run, or finds what was measured before."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.data import InexactBytesError, PreparedData, TokenBytes
from drpruning.models.fingerprint import model_fingerprint, model_folder
from drpruning.models.inspect import SOURCE_FIELD
from drpruning.recipe import Recipe
from drpruning.runs.folder import RunFolder
from drpruning.runs.records import Evaluation, load_evaluation, write_evaluation

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class ModelToMeasure:
    """A model, and what its evaluation is called.

    Attributes:
        name: Of the evaluation's file: `source`, `pruned`, `model`; another for one from elsewhere.
        label: Name in tables and figures.
        path: A folder, or a name on the Hub.
        field: What named it, for the message where it cannot be loaded.
    """

    name: str
    label: str
    path: str
    field: str = SOURCE_FIELD

    def fingerprint(self) -> str:
        """The digest of its files; empty where they are not on this machine or not readable."""
        with suppress(BadInput, OSError):  # who loads the model says what is wrong
            folder = model_folder(self.path, self.field)
            return "" if folder is None else model_fingerprint(folder, self.field)
        return ""


def read_token_bytes(recipe: Recipe, data: PreparedData) -> TokenBytes | InexactBytesError:
    """How many bytes of text the tokens of a run's blocks stand for, or why that is not known."""
    try:
        return TokenBytes.load(recipe.model.tokenizer_source, data)
    except InexactBytesError as error:
        return error


def known_evaluation(
    model: ModelToMeasure, files: RunFolder, data: PreparedData, precision: str
) -> Evaluation | None:
    """Find an evaluation of the same files on the same blocks, under whatever name.

    Args:
        model: The model.
        files: The run folder.
        data: The run's, with the blocks.
        precision: That in which it would be measured.
    """
    found = []
    for file in files.evaluation_files():
        with suppress(BadInput):  # a damaged file is measured anew
            found.append(load_evaluation(file))
    candidates = [
        known
        for known in found
        if known is not None
        and known.fingerprint
        and (known.validation, known.precision) == (data.validation_digests, precision)
        and known.block_loss.keys() == data.domains.keys()
    ]
    fingerprint = model.fingerprint() if candidates else ""
    same = [known for known in candidates if known.fingerprint == fingerprint]
    return next((k for k in same if k.name == model.name), same[0] if same else None)


def measure_model(
    model: ModelToMeasure,
    recipe: Recipe,
    data: PreparedData,
    token_bytes: TokenBytes | InexactBytesError,
    accelerator: "Accelerator",
    reporter: Reporter,
) -> Evaluation:
    """Measure a model on a run's validation blocks and write evaluation/NAME.json.

    Args:
        model: The model.
        recipe: The run's.
        data: The run's, with the blocks.
        token_bytes: See `read_token_bytes`.
        accelerator: Devices and ranks; every rank gets the same result.
        reporter: Shows progress.

    Raises:
        BadInput: It cannot be loaded.
    """
    from drpruning.training.perplexity import evaluate_perplexity

    record = evaluate_perplexity(
        model.name,
        model.label,
        model.path,
        data,
        accelerator,
        reporter,
        recipe.training,
        model.field,
        token_bytes,
    )
    if lost := [domain for domain, loss in record.loss.items() if not math.isfinite(loss)]:
        reporter.warn(
            f"{model.label}: its loss is not finite on {', '.join(lost)}, so it has no average "
            "perplexity; do not use the model without finding out why"
        )
    if accelerator.is_main_process:
        record = replace(record, fingerprint=model.fingerprint())
        write_evaluation(record, RunFolder(Path(recipe.output)).evaluation(model.name))
    return record
