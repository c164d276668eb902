"""Perplexity of a model on the validation blocks of every domain."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from drpruning.common.console import Reporter
from drpruning.common.files import atomic_write, dumps
from drpruning.data import PreparedData
from drpruning.models.loading import load_model
from drpruning.pruning import ModelShape
from drpruning.recipe import Training
from drpruning.training.distributed import place_for_evaluation
from drpruning.training.validation import domain_losses


def evaluate_perplexity(
    name: str,
    label: str,
    model_path: str,
    data: PreparedData,
    accelerator: Accelerator,
    reporter: Reporter,
    training: Training,
    field: str = "model.source",
) -> dict[str, Any]:
    """Load a model and measure its loss on every domain.

    Args:
        name: Short name (`source`, `pruned`, `model`).
        label: Name in tables and figures.
        model_path: Folder or Hub name.
        data: Validation blocks.
        accelerator: Devices and ranks.
        reporter: Shows progress.
        training: Gives blocks a forward pass, precision and parallelism.
        field: What named the model, for the message where it cannot be loaded.

    Returns:
        The record of docs/run-folder.md, evaluation/NAME.json.
    """
    with reporter.status(f"loading {model_path}"):
        model = load_model(model_path, field)
    shape = ModelShape.of(model)
    total = sum(p.numel() for p in model.parameters())
    embedding = shape.num_embedding_parameters()
    place_for_evaluation(model, training, accelerator)
    blocks = {domain: d.validation for domain, d in data.domains.items()}
    with reporter.task(f"evaluate {name}", sum(map(len, blocks.values()))) as task:
        losses = domain_losses(
            model,
            blocks,
            accelerator,
            batch_size=training.micro_batch,
            precision=training.precision,
            on_progress=lambda done, _total: task.update(done),
        )
    return {
        "name": name,
        "label": label,
        "path": model_path,
        "parameters": {"total": total, "embedding": embedding, "other": total - embedding},
        **perplexity_fields(losses),
        "blocks": {domain: len(b) for domain, b in blocks.items()},
        "sequence_length": data.sequence_length,
    }


def perplexity_fields(losses: Mapping[str, float]) -> dict[str, Any]:
    """The fields of evaluation/NAME.json that follow from the loss of each domain, in nats.

    Where a loss is not finite, neither are its perplexity and the average, and no domain is worst.
    """
    finite = all(map(math.isfinite, losses.values()))
    return {
        "loss": dict(losses),
        "perplexity": {domain: _exp(loss) for domain, loss in losses.items()},
        "average_perplexity": _exp(math.fsum(losses.values()) / len(losses)),
        "worst_domain": max(losses, key=lambda domain: losses[domain]) if finite else None,
    }


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def write_evaluation(record: Mapping[str, Any], path: Path) -> None:
    """Write an evaluation to a file, replacing an earlier one in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, dumps(record, indent=1))
