"""Which documents are for validation and which for training, and both as blocks on disk."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_replace
from drpruning.data.blocks import DomainCounts
from drpruning.data.documents import Documents
from drpruning.data.permutation import Indices

_HELD_OUT_AT_MOST = 0.1
_COPY_TOKENS = 1 << 24


@dataclass(frozen=True)
class DomainDocuments:
    """The tokenized documents of one domain.

    Attributes:
        name: of the domain.
        source: the documents of its source.
        validation: those of its validation source; None holds documents of `source` out.
        trained: whether the rest of `source` is for training; otherwise it is left out.
        in_order: whether all of `source` is for validation, in its order.
    """

    name: str
    source: Documents
    validation: Documents | None
    trained: bool = True
    in_order: bool = False


@dataclass(frozen=True)
class DomainSplit:
    """Which of a domain's documents go into which blocks.

    Attributes:
        found: the documents.
        chosen: those for validation, by their place among the validation documents, in order.
        kept: whether each document of the source is for training, bool [documents].
        counts: what becomes of all of them.
        sequence_length: tokens per block.
    """

    found: DomainDocuments
    chosen: Indices
    kept: NDArray[np.bool_]
    counts: DomainCounts
    sequence_length: int

    def write(self, folder: Path) -> None:
        """Write train.bin and validation.bin."""
        validation = self.found.validation or self.found.source
        folder.mkdir(exist_ok=True)
        for name, pieces, blocks in (
            ("train", _runs(self.found.source, self.kept), self.counts.train_blocks),
            ("validation", _each(validation, self.chosen), self.counts.validation_blocks),
        ):
            _write(folder / f"{name}.bin", pieces, blocks * self.sequence_length)


def split_domains(
    domains: Sequence[DomainDocuments], *, sequence_length: int, validation_blocks: int
) -> list[DomainSplit]:
    """Split the documents of every domain so that no text for validation is trained on.

    All validation documents are chosen first: text that is in the validation set of one domain is
    left out of the training blocks of every domain. So the result depends neither on the order of
    the domains nor on which of them happens to be prepared first.

    Args:
        domains: all of them.
        sequence_length: tokens per block.
        validation_blocks: per domain, at most.

    Returns:
        The splits, in the order of the domains.

    Raises:
        BadInput: a domain has too little text for one block of either kind; its name is in the
            attribute `domain` of the error.
    """
    chosen = [_validation(domain, validation_blocks, sequence_length) for domain in domains]
    hashes = [
        (domain.validation or domain.source).hashes[places]
        for domain, places in zip(domains, chosen, strict=True)
    ]
    validation_texts = np.unique(np.concatenate(hashes))
    splits = []
    for domain, places, own_texts in zip(domains, chosen, hashes, strict=True):
        kept = ~np.isin(domain.source.hashes, validation_texts) & domain.trained
        counts = _counts(domain, places, kept, own_texts, validation_blocks, sequence_length)
        splits.append(DomainSplit(domain, places, kept, counts, sequence_length))
    return splits


class TooLittleText(BadInput):
    """A domain has too little text for one block.

    Attributes:
        domain: its name.
    """

    def __init__(self, domain: str, message: str) -> None:
        super().__init__(message)
        self.domain = domain


def _validation(domain: DomainDocuments, blocks: int, length: int) -> Indices:
    """The documents for validation, by their place among the validation documents."""
    label = f"data.domains.{domain.name}"
    if (given := domain.source if domain.in_order else domain.validation) is not None:
        if given.total < length:
            raise TooLittleText(
                domain.name,
                f"{label}.validation: its text does not fill one block of {length} tokens; give "
                "it more text or lower data.sequence_length",
            )
        return np.arange(len(given.lengths))
    at_most = _HELD_OUT_AT_MOST if domain.trained else 1.0
    chosen = _hold_out(domain.source, blocks * length, at_most)
    if int(domain.source.lengths[chosen].sum()) < length:
        if not domain.trained:
            raise TooLittleText(
                domain.name,
                f"{label}: its text does not fill one validation block of {length} tokens; give it "
                "more text or lower data.sequence_length",
            )
        raise TooLittleText(
            domain.name,
            f"{label}: no complete documents within a tenth of its {domain.source.total} tokens "
            f"({len(domain.source.lengths)} documents) fill one validation block of {length}; give "
            f"{label}.validation a source, the domain more or shorter documents, or lower "
            "data.sequence_length",
        )
    return chosen


def _hold_out(documents: Documents, wanted: int, at_most: float) -> Indices:
    """Complete documents for validation, in the order of their hashes; of equal texts the first.

    The choice depends on texts and seed, not on how the documents are spread over files.
    """
    budget = int(at_most * documents.total)
    shortest = int(documents.lengths.min())
    order = np.argsort(documents.hashes, kind="stable")
    repeated = np.zeros(len(order), dtype=bool)
    repeated[1:] = np.diff(documents.hashes[order]) == 0
    order = order[~repeated]
    chosen, taken = [], 0
    for index, length in zip(order.tolist(), documents.lengths[order].tolist(), strict=True):
        if taken >= wanted or taken + shortest > budget:
            break
        if taken + length <= budget:
            chosen.append(index)
            taken += length
    return np.array(chosen, dtype=np.int64)


def _counts(
    domain: DomainDocuments,
    chosen: Indices,
    kept: NDArray[np.bool_],
    own_texts: NDArray[np.uint64],
    validation_blocks: int,
    length: int,
) -> DomainCounts:
    source, validation = domain.source, domain.validation or domain.source
    total = source.total + (0 if domain.validation is None else domain.validation.total)
    left = int(source.lengths[kept].sum())
    in_own = int(np.isin(source.hashes, own_texts).sum())
    in_others = len(kept) - int(kept.sum()) - in_own if domain.trained else 0
    train_blocks = left // length
    if domain.trained and not train_blocks:
        where = "any domain's" if in_others else "its"
        raise TooLittleText(
            domain.name,
            f"data.domains.{domain.name}: {left} tokens are left for training once text that is in "
            f"{where} validation set too is left out, less than one block of {length}; give it "
            "more text or lower data.sequence_length",
        )
    blocks = min(int(validation.lengths[chosen].sum()) // length, validation_blocks)
    special = Counter(source.special)
    if domain.validation is not None:
        special.update(domain.validation.special)
    return DomainCounts(
        documents=len(source.lengths),
        tokens=total,
        empty_documents=source.empty,
        duplicates=in_own - (len(chosen) if domain.validation is None else 0),
        in_other_validation=in_others,
        validation_documents=len(chosen),
        train_blocks=train_blocks,
        validation_blocks=blocks,
        dropped_tokens=total - (train_blocks + blocks) * length,
        special_tokens=dict(special.most_common()),
    )


def _runs(documents: Documents, kept: NDArray[np.bool_]) -> Iterable[NDArray[Any]]:
    """Tokens of the kept documents in their order, neighbours together."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]])))
    offsets = documents.offsets
    for first, last in edges.reshape(-1, 2):
        for start in range(offsets[first], offsets[last], _COPY_TOKENS):
            yield documents.tokens[start : min(start + _COPY_TOKENS, offsets[last])]


def _each(documents: Documents, chosen: Indices) -> Iterable[NDArray[Any]]:
    """Tokens of the chosen documents, in the order of the choice."""
    offsets = documents.offsets
    for index in chosen:
        yield documents.tokens[offsets[index] : offsets[index + 1]]


def _write(file: Path, pieces: Iterable[NDArray[Any]], count: int) -> None:
    """Write the first `count` tokens; the file appears complete or not at all."""
    temporary = file.with_suffix(".tmp")
    left = count
    with temporary.open("wb") as stream:
        for piece in pieces:
            part = piece[:left]
            stream.write(part.astype(part.dtype.newbyteorder("<"), copy=False).data)
            left -= len(part)
    atomic_replace(temporary, file)
