"""Validation text in two halves: one steers the ratio, what is reported is measured on the other.

Documents go by turns to the validation file, whose losses every policy sees while it trains, and to
a file beside it with `-test` in its name, which no run and no choice of a setting has seen.
"""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import yaml
from accelerate import Accelerator

from drpruning.common.console import Reporter
from drpruning.common.files import atomic_write
from drpruning.data import PreparedData
from drpruning.recipe import Training
from drpruning.training.perplexity import evaluate_perplexity

BLOCKS = 100
"""Of each domain, at most, that a finished model is measured on."""


def split_text(recipe: Path, text: Path, folder: Path) -> dict[str, str]:
    """Lay out the text of a recipe in a folder: training files linked, validation files in halves.

    Args:
        recipe: Names source and validation of every domain, relative to `text`.
        text: Where they lie.
        folder: For the result, made where it is missing; what is there stays.

    Returns:
        The file of the test half by domain, relative to `folder`.
    """
    tests = {}
    for name, domain in yaml.safe_load(recipe.read_text())["data"]["domains"].items():
        link, validation = folder / domain["source"], folder / domain["validation"]
        test = validation.with_stem(f"{validation.stem}-test")
        tests[name] = str(test.relative_to(folder))
        if test.is_file():  # written last
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(text / domain["source"])
        with (text / domain["validation"]).open(encoding="utf-8", newline="\n") as file:
            documents = list(file)
        for half, part in enumerate((validation, test)):
            atomic_write(part, "".join(islice(documents, half, None, 2)))
    return tests


def test_losses(model: Path, data: Path, record: Path) -> Mapping[str, float]:
    """Loss of a model by domain in nats on prepared validation blocks, in float32.

    Args:
        model: Its folder.
        data: Prepared data.
        record: A JSON file that keeps the losses: read where it is there, else written.
    """
    if not record.is_file():
        found = evaluate_perplexity(
            "test",
            "test",
            str(model),
            PreparedData.open(data),
            Accelerator(cpu=True),
            Reporter(silent=True),
            Training(micro_batch=8, precision="fp32"),
        )
        record.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(record, json.dumps(dict(found.loss)))
    losses: dict[str, float] = json.loads(record.read_text())
    return losses
