"""Documents of several domains, tokenized into temporary files in one pass over their source."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput, shown
from drpruning.common.files import fsync_path
from drpruning.data.formats import Row
from drpruning.data.memory import longest_document, too_long
from drpruning.data.permutation import Indices
from drpruning.data.readers import RowReader, field_names, lookup
from drpruning.data.sources import DomainSource
from drpruning.data.tokenization import DocumentTokenizer, EncodedDocuments, piece_bytes

_BYTES_PER_TOKEN = 4
_VALUES_SHOWN = 5
_LONG = 1 << 24  # characters of a document whose memory is worth a look


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Tokenized documents on disk: their ids in one file, lengths and hashes in two beside it.

    Attributes:
        file: ids of all documents, one after the other.
        dtype: of the ids.
        lengths: tokens of each document, int64 [documents].
        hashes: keyed hash of the text of each, uint64 [documents]; equal texts, equal hashes.
        empty: number of documents without text, which are not among these.
        special: special token -> how often it is written in their text.
    """

    file: Path
    dtype: np.dtype[Any]
    lengths: Indices
    hashes: NDArray[np.uint64]
    empty: int
    special: Mapping[str, int]

    @classmethod
    def open(cls, file: Path, dtype: np.dtype[Any], counts: Mapping[str, Any]) -> "Documents":
        """Open what a `DomainWriter` has written.

        Args:
            file: of the ids; it is read when `tokens` is.
            dtype: of the ids.
            counts: from `Documents.counts`.

        Raises:
            OSError: a file is missing.
            ValueError: a file is cut off.
        """
        lengths = np.memmap(_beside(file, "lengths"), dtype=np.int64, mode="r")
        hashes = np.memmap(_beside(file, "hashes"), dtype=np.uint64, mode="r")
        documents = cls(
            file=file,
            dtype=dtype,
            lengths=lengths,
            hashes=hashes,
            empty=counts["empty"],
            special=counts["special_tokens"],
        )
        if documents.counts() != dict(counts) or len(hashes) != len(lengths):
            raise ValueError(f"{file} does not have the documents that it should have")
        return documents

    def counts(self) -> dict[str, Any]:
        """Numbers of documents, of their tokens, of documents without text, of special tokens."""
        return {
            "documents": len(self.lengths),
            "tokens": self.total,
            "empty": self.empty,
            "special_tokens": dict(self.special),
        }

    def check_tokens(self) -> None:
        """Compare the size of the file of ids with the lengths.

        Raises:
            OSError: the file is missing.
            ValueError: it has another size.
        """
        if self.file.stat().st_size != self.total * self.dtype.itemsize:
            raise ValueError(f"{self.file} is cut off")

    @cached_property
    def total(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """Ids of all documents, one after the other."""
        return np.memmap(self.file, dtype=self.dtype, mode="r", shape=(self.total,))

    @cached_property
    def offsets(self) -> Indices:
        """Where each document begins in `tokens`, and the end: int64 [documents + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)


def _beside(file: Path, kind: str) -> Path:
    return file.with_name(f"{file.name}.{kind}")


@dataclass
class DomainWriter:
    """Writes the documents of one domain to disk as they are tokenized.

    Attributes:
        domain: the domain; its `where` selects the documents.
        file: temporary file for the ids; there is none yet.
        limit: tokens that are enough, None for all.
    """

    domain: DomainSource
    file: Path
    limit: int | None = None
    tokens: int = 0
    empty: int = 0
    special: Counter[str] = field(default_factory=Counter)
    _lengths: list[Indices] = field(default_factory=list)
    _hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    _rejected: set[str] = field(default_factory=set)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.tokens >= self.limit

    def accepts(self, row: Row) -> bool:
        """Whether the domain's `where` lets the row through."""
        for name, wanted in self.domain.where.items():
            value = lookup(row, name)[1]
            allowed = wanted if isinstance(wanted, list | tuple) else [wanted]
            if not any(_is_same(value, one) for one in allowed):
                if len(self._rejected) < _VALUES_SHOWN:
                    self._rejected.add(f"{name} = {shown(value)}")
                return False
        return True

    def add(self, documents: EncodedDocuments, hashes: NDArray[np.uint64]) -> None:
        """Append documents up to the one that reaches the limit."""
        tokens, lengths = documents.tokens, documents.lengths
        if self.limit is not None:
            count = int(np.searchsorted(np.cumsum(lengths), self.limit - self.tokens)) + 1
            lengths, hashes = lengths[:count], hashes[:count]
            tokens = tokens[: int(lengths.sum())]
        with self.file.open("ab") as stream:
            stream.write(tokens.data)
        self.tokens += len(tokens)
        self._lengths.append(lengths)
        self._hashes.append(hashes)
        for place, found in documents.special.items():
            if place < len(lengths):
                self.special.update(found)

    def finish(self, dtype: np.dtype[Any], label: str) -> Documents:
        """Write lengths and hashes beside the ids; all three files are on the disk then.

        Raises:
            BadInput: there are no documents.
        """
        if not self.tokens:
            raise BadInput(f"{label}: {self._why_nothing()}")
        lengths, hashes = np.concatenate(self._lengths), np.concatenate(self._hashes)
        for kind, values in (("lengths", lengths), ("hashes", hashes)):
            file = _beside(self.file, kind)
            file.write_bytes(values.data)
            fsync_path(file)
        fsync_path(self.file)
        return Documents(
            file=self.file,
            dtype=dtype,
            lengths=lengths,
            hashes=hashes,
            empty=self.empty,
            special=dict(self.special.most_common()),
        )

    def _why_nothing(self) -> str:
        if self.empty:
            return f"all {self.empty} documents are empty"
        if not self._rejected:
            return "there is no document"
        return (
            f"no document fits `where` ({dict(self.domain.where)}); there are "
            f"{', '.join(sorted(self._rejected))}"
        )


def collect(
    rows: RowReader,
    collectors: Sequence[DomainWriter],
    tokenizer: DocumentTokenizer,
    *,
    seed: int,
    workers: int,
    report: Callable[[], None],
) -> None:
    """Read a source once and tokenize each document for the domains that take it.

    Args:
        rows: of the source.
        collectors: one per domain, all with the same text field; reading ends when all are full.
        tokenizer: for the text.
        seed: of the hashes.
        workers: processes for tokenization.
        report: called after every batch of text.

    Raises:
        BadInput: a row has no text field, or a file is damaged.
    """
    piece_size = piece_bytes(workers)
    if all(collector.limit is not None for collector in collectors):
        wanted = sum(collector.limit or 0 for collector in collectors)
        piece_size = min(piece_size, _BYTES_PER_TOKEN * wanted)
    key = seed.to_bytes(8, "little", signed=True)
    piece = _TokenizationBatch()
    for place, number, row in rows:
        takers = [i for i, taker in enumerate(collectors) if not taker.full and taker.accepts(row)]
        if not takers:
            continue
        text = _text_of(row, collectors[takers[0]].domain, place, number)
        if len(text) > _LONG and (limit := longest_document()) and len(text) > limit:
            raise too_long(f"{place}:{number}", limit)
        if not text.strip():
            for index in takers:
                collectors[index].empty += 1
            continue
        piece.add(text, takers, key)
        if piece.size >= piece_size:
            piece.distribute(collectors, tokenizer, workers)
            piece = _TokenizationBatch()
            report()
            if all(collector.full for collector in collectors):
                return
    piece.distribute(collectors, tokenizer, workers)
    report()


@dataclass
class _TokenizationBatch:
    """Documents to tokenize at once, each with the index of the collector that takes it."""

    size: int = 0
    texts: list[bytes] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def add(self, text: str, takers: Sequence[int], key: bytes) -> None:
        # A lone surrogate, which JSON can express and UTF-8 cannot, becomes a question mark.
        raw = text.encode("utf-8", errors="replace")
        digest = hashlib.blake2b(raw, digest_size=8, key=key).digest()
        for index in takers:
            self.size += len(raw)
            self.texts.append(raw)
            self.hashes.append(int.from_bytes(digest, "little"))
            self.owners.append(index)

    def distribute(
        self, collectors: Sequence[DomainWriter], tokenizer: DocumentTokenizer, workers: int
    ) -> None:
        if not self.texts:
            return
        encoded = tokenizer.encode(self.texts, workers)
        hashes = np.array(self.hashes, dtype=np.uint64)
        owners = np.array(self.owners)
        for index, collector in enumerate(collectors):
            mine = owners == index
            if mine.all():
                collector.add(encoded, hashes)
            elif mine.any():
                collector.add(_some(encoded, mine), hashes[mine])


def _is_same(value: object, wanted: object) -> bool:
    """Whether two values of JSON are equal: unlike in Python, `true` is not 1 there."""
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def _some(documents: EncodedDocuments, chosen: NDArray[np.bool_]) -> EncodedDocuments:
    """The chosen documents, bool [documents], in their order."""
    places = np.cumsum(chosen) - 1
    return EncodedDocuments(
        documents.tokens[np.repeat(chosen, documents.lengths)],
        documents.lengths[chosen],
        {int(places[i]): found for i, found in documents.special.items() if chosen[i]},
    )


def _text_of(row: Row, domain: DomainSource, place: str, number: int) -> str:
    label = f"data.domains.{domain.name}.text_field"
    found, text = lookup(row, domain.text_field)
    if not found:
        raise BadInput(
            f"{label}: {place}:{number} has no field {domain.text_field!r}; its fields are "
            f"{field_names(row)}"
        )
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadInput(
            f"{label}: {place}:{number} has {shown(text)} in {domain.text_field!r}, which "
            "is no text; name the field that holds the text"
        )
    return text
