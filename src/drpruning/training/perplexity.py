"""Perplexity of a model on the validation blocks of every domain."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from drpruning.common.console import Reporter
from drpruning.data import InexactBytesError, PreparedData, TokenBlocks, TokenBytes
from drpruning.models.loading import load_model
from drpruning.pruning import ModelShape
from drpruning.recipe import Training
from drpruning.runs.intervals import Domain, bootstrap
from drpruning.runs.records import Evaluation, ParameterCounts
from drpruning.training.distributed import place_for_evaluation
from drpruning.training.validation import block_losses, mean_losses


def evaluate_perplexity(
    name: str,
    label: str,
    model_path: str,
    data: PreparedData,
    accelerator: Accelerator,
    reporter: Reporter,
    training: Training,
    field: str = "model.source",
    token_bytes: TokenBytes | InexactBytesError | None = None,
) -> Evaluation:
    """Load a model and measure its loss on every domain.

    Args:
        name: Short name (`source`, `pruned`, `model`; another for a model from elsewhere).
        label: Name in tables and figures.
        model_path: Folder or Hub name.
        data: Gives the validation blocks.
        accelerator: Devices and ranks.
        reporter: Shows progress.
        training: Gives the number of blocks per forward pass, precision and parallelism.
        field: What named the model, for the message where it cannot be loaded.
        token_bytes: For bits per byte; see `byte_fields`.
    """
    with reporter.status(f"loading {model_path}"):
        model = load_model(model_path, field)
    shape = ModelShape.of(model)
    total = sum(p.numel() for p in model.parameters())
    embedding = shape.num_embedding_parameters()
    place_for_evaluation(model, training, accelerator)
    blocks = {domain: d.validation for domain, d in data.domains.items()}
    with reporter.task(f"evaluate {name}", sum(map(len, blocks.values()))) as task:
        found = block_losses(
            model,
            blocks,
            accelerator,
            batch_size=training.micro_batch,
            precision=training.precision,
            on_progress=lambda done, _total: task.update(done),
        )
    counts = ParameterCounts(total=total, embedding=embedding, other=total - embedding)
    return Evaluation(
        name=name,
        label=label,
        path=model_path,
        parameters=counts,
        **perplexity_fields(mean_losses(found)),
        blocks={domain: len(b) for domain, b in blocks.items()},
        sequence_length=data.sequence_length,
        validation=data.validation_digests,
        **interval_fields(found),
        **byte_fields(found, blocks, token_bytes),
        precision=training.precision,
    )


def interval_fields(block_loss: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """The fields of an evaluation that say how sure the losses are."""
    interval, average = bootstrap({name: Domain.of(loss) for name, loss in block_loss.items()})
    return {
        "block_loss": {name: losses.tolist() for name, losses in block_loss.items()},
        "interval": interval,
        "average_interval": average,
    }


def byte_fields(
    block_loss: Mapping[str, NDArray[np.float64]],
    blocks: Mapping[str, TokenBlocks],
    token_bytes: TokenBytes | InexactBytesError | None,
) -> dict[str, Any]:
    """The fields of an evaluation that are per byte of text.

    Args:
        block_loss: Domain -> nats per token of each block.
        blocks: The blocks.
        token_bytes: Of the tokenizer that they were made with, or why there is none; None: not
            wanted.
    """
    if token_bytes is None:
        return {}
    if isinstance(token_bytes, InexactBytesError):
        return {"note": f"No bits per byte. The tokenizer: {token_bytes}."}
    measured, unknown = {}, []
    for name, losses in block_loss.items():
        found = blocks[name]
        size = np.concatenate(
            [token_bytes.scored(found[slice(i, i + 64)]) for i in range(0, len(found), 64)]
        )
        if (size < 0).any() or not size.sum():
            unknown.append(name)
        else:
            bits = losses * (found.sequence_length - 1) / math.log(2)
            measured[name] = Domain.of(bits, size)
    note = f"No bits per byte on {', '.join(unknown)}: its text is not all in the vocabulary."
    return {
        "bytes": {name: int(domain.weights.sum()) for name, domain in measured.items()},
        "bits_per_byte": {name: domain.estimate for name, domain in measured.items()},
        "bits_per_byte_interval": bootstrap(measured)[0],
    } | ({"note": note} if unknown else {})


def perplexity_fields(losses: Mapping[str, float]) -> dict[str, Any]:
    """The fields of an evaluation that follow from the loss of each domain, in nats.

    Where a loss is not finite, neither are its perplexity and the average, and no domain is worst.
    """
    finite = all(map(math.isfinite, losses.values()))
    return {
        "loss": dict(losses),
        "perplexity": {domain: _exp(loss) for domain, loss in losses.items()},
        "average_perplexity": _exp(_mean(losses.values())),
        "worst_domain": max(losses, key=lambda domain: losses[domain]) if finite else None,
    }


def _mean(values: Collection[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return math.inf


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
