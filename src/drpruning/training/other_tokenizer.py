"""Bits per byte of a model with a tokenizer of its own, on the text of a run's blocks.

Losses per token of different vocabularies are of different things. The same bytes of text are the
same thing for every model: the text of each validation block is read back from its tokens, split by
the model's own tokenizer, and the loss of all of it is divided by its bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.data import DocumentFormat, InexactBytesError, PreparedData, TokenBytes
from drpruning.data.tokenization import DocumentTokenizer, load_tokenizer
from drpruning.models.files import positions
from drpruning.models.loading import load_model
from drpruning.pruning import ModelShape
from drpruning.recipe import Training
from drpruning.runs.intervals import Domain, bootstrap
from drpruning.runs.records import Evaluation, ParameterCounts
from drpruning.training.distributed import place_for_evaluation
from drpruning.training.validation import autocast, token_losses


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once.

    Attributes:
        block: Number of the validation block that its text is of.
        ids: Token ids.
        first: Position of the first token that is scored.
        size: Bytes that the scored tokens stand for.
    """

    block: int
    ids: NDArray[np.int64]
    first: int
    size: int


@dataclass(frozen=True)
class OtherTokenizer:
    """A model's own tokenizer, and that of the run whose text it is to split."""

    tokenizer: DocumentTokenizer
    own: TokenBytes
    run: TokenBytes

    @classmethod
    def load(
        cls, model: str, label: str, data: PreparedData, run: TokenBytes | InexactBytesError
    ) -> "OtherTokenizer":
        """Load and check the tokenizer of a model.

        Args:
            model: A folder, or a name on the Hub.
            label: The model's name for people.
            data: The run's; says whether special tokens written in its text are text.
            run: The bytes of the run's tokenizer, or why they are not known.

        Raises:
            BadInput: One of the two tokenizers does not say what text its tokens stand for.
        """
        refusal = f"{label}: its tokenizer is not the one that the run was made with, and"
        if isinstance(run, InexactBytesError):
            raise BadInput(
                f"{refusal} the text cannot be read back from the run's blocks: of the run's "
                f"tokenizer, {run}; name a model of the run's family"
            )
        wanted = DocumentFormat(special_tokens=data.document_format.special_tokens)
        tokenizer = DocumentTokenizer.load(model, None, wanted)
        try:
            own = TokenBytes.of(load_tokenizer(model))
        except InexactBytesError as error:
            raise BadInput(
                f"{refusal} bits per byte, by which such models are compared, are not known: "
                f"{error}; name another model"
            ) from None
        return cls(tokenizer, own, run)

    def windows(self, blocks: NDArray[np.int64], limit: int | None) -> Iterator[Window]:
        """Split the text of blocks into what the model reads at once.

        As in the run's own blocks the first token of a text is not scored. A BOS token that the
        tokenizer puts in front of prompts is put in front of each window.

        Args:
            blocks: Token ids of the run's blocks [blocks, sequence_length].
            limit: Tokens of a window, at most; None: a block's text is one window.
        """
        bos = self.tokenizer.markers.bos
        first = [] if bos is None else [bos.id]
        for number, block in enumerate(blocks):
            ids = self._ids(self.run.texts(block))
            length = len(ids) if limit is None else limit - len(first)
            step = max(length, 2)
            for part in (ids[start : start + step] for start in range(0, len(ids), step)):
                window = np.array([*first, *part], dtype=np.int64)
                begin = len(first) + 1
                size = self.own.of_tokens(window)[begin:]
                if len(size):
                    total = -1 if (size < 0).any() else int(size.sum())
                    yield Window(number, window, begin, total)

    def _ids(self, texts: Sequence[bytes]) -> list[int]:
        """Token ids of the documents of a block, of which the first and the last may be cut off."""
        markers = self.tokenizer.markers
        # A block may begin and end within a character.
        decoded = (text.decode(errors="ignore").encode() for text in texts)
        documents = [text for text in decoded if text]
        if not documents:
            return []
        encoded = self.tokenizer.encode(documents, 1)
        parts = np.split(encoded.tokens.astype(np.int64), np.cumsum(encoded.lengths)[:-1])
        if markers.bos is not None:
            parts[0] = parts[0][1:]  # each window begins with one
        ids: list[int] = np.concatenate(parts).tolist()
        return ids if markers.eos is None or not texts[-1] else ids[:-1]


def evaluate_bits_per_byte(
    name: str,
    label: str,
    model_path: str,
    data: PreparedData,
    tokenizer: OtherTokenizer,
    accelerator: Accelerator,
    reporter: Reporter,
    training: Training,
    field: str,
) -> Evaluation:
    """Load a model with another tokenizer and measure its bits per byte on every domain.

    Args:
        name: Short name.
        label: Name in tables and figures.
        model_path: Folder or Hub name.
        data: Gives the validation blocks.
        tokenizer: The model's.
        accelerator: Devices and ranks; every rank gets the same result.
        reporter: Shows progress.
        training: Gives windows per forward pass, precision and parallelism.
        field: What named the model, for the message where it cannot be loaded.

    Raises:
        BadInput: The model cannot be loaded.
    """
    with reporter.status(f"loading {model_path}"):
        model = load_model(model_path, field)
    total = sum(p.numel() for p in model.parameters())
    embedding = ModelShape.of(model).num_embedding_parameters()
    place_for_evaluation(model, training, accelerator)
    measured = _measured(model, data, tokenizer, accelerator, reporter, training)
    return Evaluation(
        name=name,
        label=label,
        path=model_path,
        parameters=ParameterCounts(total=total, embedding=embedding, other=total - embedding),
        loss={},
        perplexity={},
        average_perplexity=math.nan,
        worst_domain=None,
        blocks={domain: len(found.validation) for domain, found in data.domains.items()},
        sequence_length=data.sequence_length,
        validation=data.validation_digests,
        precision=training.precision,
        tokenizer=tokenizer.tokenizer.digest,
        **_fields(label, measured, data),
    )


def _measured(
    model: nn.Module,
    data: PreparedData,
    tokenizer: OtherTokenizer,
    accelerator: Accelerator,
    reporter: Reporter,
    training: Training,
) -> dict[str, Domain]:
    """Domain -> bits and bytes of its blocks, without domains with text of unknown tokens."""
    limit = positions(model.config.to_dict())  # type: ignore[union-attr, operator]
    blocks = {domain: d.validation for domain, d in data.domains.items()}
    windows = {
        domain: list(tokenizer.windows(found[slice(None)], limit))
        for domain, found in blocks.items()
    }
    measured: dict[str, Domain] = {}
    with reporter.task("evaluate", sum(map(len, windows.values()))) as task:
        done = 0
        for domain, found in windows.items():
            done += len(found)
            if all(window.size >= 0 for window in found) and any(w.size for w in found):
                sizes = np.zeros(len(blocks[domain]))
                np.add.at(sizes, [window.block for window in found], [w.size for w in found])
                bits = _bits(model, found, len(sizes), accelerator, training)
                measured[domain] = Domain.of(bits, sizes)
            task.update(done)
    return measured


def _fields(label: str, measured: Mapping[str, Domain], data: PreparedData) -> dict[str, Any]:
    note = (
        f"{label} has another tokenizer: of it there are bits per byte alone, since perplexities "
        "of different tokenizers cannot be compared."
    )
    if unknown := [domain for domain in data.domains if domain not in measured]:
        note += f" On {', '.join(unknown)} not all text is in its vocabulary."
    return {
        "bytes": {domain: int(found.weights.sum()) for domain, found in measured.items()},
        "bits_per_byte": {domain: found.estimate for domain, found in measured.items()},
        "bits_per_byte_interval": bootstrap(measured)[0],
        "note": note,
    }


@torch.no_grad()
def _bits(
    model: nn.Module,
    windows: Sequence[Window],
    blocks: int,
    accelerator: Accelerator,
    training: Training,
) -> NDArray[np.float64]:
    """The loss of the scored tokens of each block in bits, float64 [blocks]."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    sums = torch.zeros(blocks, dtype=torch.float64, device=accelerator.device)
    size = training.micro_batch * ranks
    for group in (windows[start : start + size] for start in range(0, len(windows), size)):
        mine = group[rank::ranks] or group[:1]  # every rank runs the model: others need its shards
        longest = max(len(window.ids) for window in mine)
        ids_BT = np.zeros((len(mine), longest), dtype=np.int64)
        for row, window in zip(ids_BT, mine, strict=True):
            row[: len(window.ids)] = window.ids  # what stands behind it changes no loss before it
        with autocast(accelerator.device, training.precision):
            losses_BT = token_losses(model, torch.from_numpy(ids_BT).to(accelerator.device))
        if len(group) > rank:
            for losses, window in zip(losses_BT.double(), mine, strict=True):
                scored = losses[window.first - 1 : len(window.ids) - 1]  # of the tokens after
                sums[window.block] += scored.sum() / math.log(2)
    found: NDArray[np.float64] = accelerator.reduce(sums).cpu().numpy()
    return found
