"""Tokenized data on disk: blocks of equal length, memory-mapped, and the manifest over them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, parse_json
from drpruning.data.document_format import DocumentFormat

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 3
_DTYPES = {"uint16", "uint32"}
_TOKENS_SHOWN = 5


class TokenBlocks:
    """Token blocks of one length in a raw file, read through a memory map.

    Args:
        file: little-endian ids, [blocks, sequence_length] row by row.
        sequence_length: tokens per block.
        dtype: `uint16` or `uint32`.

    Raises:
        BadInput: the file is missing, or its size is no multiple of a block's.
    """

    def __init__(self, file: Path, sequence_length: int, dtype: str) -> None:
        self.file = file
        self.sequence_length = sequence_length
        self.dtype = np.dtype(dtype).newbyteorder("<")
        size = file.stat().st_size if file.is_file() else -1
        self._count, rest = divmod(size, sequence_length * self.dtype.itemsize)
        if size < 0 or rest:
            raise BadInput(f"{file} is missing or cut off; delete its folder and prepare again")

    def __reduce__(self) -> tuple[Callable[..., "TokenBlocks"], tuple[Path, int, str]]:
        return TokenBlocks, (self.file, self.sequence_length, self.dtype.name)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, ids: NDArray[np.integer[Any]] | slice) -> NDArray[np.int64]:
        """Token ids int64 [k, sequence_length] of the blocks with the given ids [k]."""
        return self.rows[ids].astype(np.int64)

    @cached_property
    def rows(self) -> NDArray[Any]:
        """Token ids [blocks, sequence_length] as a memory map of the file."""
        shape = (self._count, self.sequence_length)
        if not self._count:
            return np.empty(shape, dtype=self.dtype)
        return np.asarray(np.memmap(self.file, dtype=self.dtype, mode="r", shape=shape))


@dataclass(frozen=True, kw_only=True)
class DomainCounts:
    """What the preparation of one domain has counted; tokens include those that mark documents.

    Attributes:
        documents: with text, that `where` lets through.
        tokens: in those documents.
        empty_documents: without text, left out.
        duplicates: documents left out of train because their text is in the domain's validation.
        in_other_validation: those left out because it is in another domain's validation alone.
        validation_documents: held out, or read from the validation source.
        train_blocks: for training.
        validation_blocks: for evaluation.
        dropped_tokens: in no block: documents left out, ends that fill no block, and validation
            text beyond its limit.
        special_tokens: special token of the tokenizer -> how often it is written in the text of
            these documents and of the validation source's, most frequent first.
    """

    documents: int
    tokens: int
    empty_documents: int
    duplicates: int
    in_other_validation: int
    validation_documents: int
    train_blocks: int
    validation_blocks: int
    dropped_tokens: int
    special_tokens: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DomainBlocks:
    """The prepared data of one domain; train and validation share no document."""

    name: str
    train: TokenBlocks
    validation: TokenBlocks
    counts: DomainCounts

    @property
    def train_tokens(self) -> int:
        """Tokens in the train blocks, which is one epoch."""
        return len(self.train) * self.train.sequence_length

    @property
    def documents(self) -> int:
        """Documents with text."""
        return self.counts.documents


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A folder of tokenized blocks, with one subfolder per domain.

    Attributes:
        folder: its path.
        fingerprint: of tokenizer, settings and sources; equal fingerprints mean equal blocks.
        tokenizer_digest: see `tokenizer_digest`.
        sequence_length: tokens per block.
        domains: by name, in the order in which they were prepared.
        identity: what the blocks were made from, see `drpruning.data.fingerprint.identify`.
        places: domain -> its `source` and `validation`, as they were named.
        document_format: how documents were marked, and what special tokens in them were.
    """

    folder: Path
    fingerprint: str
    tokenizer_digest: str
    sequence_length: int
    domains: dict[str, DomainBlocks]
    identity: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    document_format: DocumentFormat = field(default_factory=DocumentFormat)

    def train_blocks(
        self,
        names: Sequence[str],
        domains: NDArray[np.integer[Any]],
        ids: NDArray[np.integer[Any]],
    ) -> NDArray[np.int64]:
        """Token ids int64 [k, sequence_length] of train blocks given by domain [k] and id [k].

        Args:
            names: of the domains that are trained on.
            domains: positions of the blocks' domains in `names`.
            ids: ids of the blocks within their domains.
        """
        rows = [self.domains[name].train.rows for name in names]
        blocks = np.empty((len(ids), self.sequence_length), dtype=np.int64)
        # Block by block is faster than domain by domain: each is converted as it is copied.
        for block, domain, index in zip(blocks, domains.tolist(), ids.tolist(), strict=True):
            block[:] = rows[domain][index]
        return blocks

    @classmethod
    def open(cls, folder: Path | str) -> "PreparedData":
        """Open a folder that `prepare` has written.

        Raises:
            BadInput: there is no prepared data, its preparation is not complete, or a file is
                damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise BadInput(f"{folder} has no prepared data; run `drprune prepare` first")
        wanted = manifest["identity"]["domains"]
        if not all(name in manifest["domains"] for name in wanted):
            missing = ", ".join(name for name in wanted if name not in manifest["tokenized"])
            raise BadInput(
                f"the data in {folder} is not complete ({missing or 'blocks'} missing); run "
                "`drprune prepare` again, which resumes where it stopped"
            )
        length, dtype = manifest["sequence_length"], manifest["dtype"]
        domains = {}
        for name in wanted:
            counts = DomainCounts(**manifest["domains"][name])
            train, validation = (
                TokenBlocks(folder / name / f"{part}.bin", length, dtype)
                for part in ("train", "validation")
            )
            if (len(train), len(validation)) != (counts.train_blocks, counts.validation_blocks):
                raise BadInput(
                    f"the files in {folder / name} do not match the manifest; delete {folder} and "
                    "prepare again"
                )
            domains[name] = DomainBlocks(
                name=name, train=train, validation=validation, counts=counts
            )
        return cls(
            folder=folder,
            fingerprint=manifest["fingerprint"],
            tokenizer_digest=manifest["identity"]["tokenizer"],
            sequence_length=length,
            domains=domains,
            identity=manifest["identity"],
            places=manifest["places"],
            document_format=DocumentFormat(**manifest["document_format"]),
        )

    @cached_property
    def validation_digests(self) -> dict[str, str]:
        """Domain -> a digest of all token ids of its validation blocks, 32 hexadecimal digits."""
        return {name: _digest(domain.validation) for name, domain in self.domains.items()}

    def overlap_warnings(self) -> list[str]:
        """One line for each domain that lost training text to the validation of other domains."""
        return [
            f"data.domains.{name}: {domain.counts.in_other_validation:,} of {domain.documents:,} "
            "documents are not trained on, because the validation set of another domain has the "
            "same text"
            for name, domain in self.domains.items()
            if domain.counts.in_other_validation
        ]

    def special_token_lines(self) -> list[str]:
        """One line for each domain in whose text special tokens are written."""
        became = {"text": "encoded as text", "parse": "which became these tokens"}
        return [
            f"special tokens written in the text of {name}: {_most_frequent(found)}, "
            f"{became[self.document_format.special_tokens]} (data.special_tokens)"
            for name, domain in self.domains.items()
            if (found := domain.counts.special_tokens)
        ]

    def summary(self) -> list[dict[str, Any]]:
        """One row per domain, for a table: name, tokens per epoch and every count."""
        return [
            {"domain": name, "train_tokens": domain.train_tokens, **vars(domain.counts)}
            for name, domain in self.domains.items()
        ]


def _digest(blocks: TokenBlocks) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(blocks), 64):  # not all at once, for they lie in a memory map
        digest.update(blocks[slice(first, first + 64)].tobytes())
    return digest.hexdigest()


def _most_frequent(found: Mapping[str, int]) -> str:
    """The special tokens of a domain with their numbers, only the first where there are many."""
    shown = [f"{token} {count:,}" for token, count in list(found.items())[:_TOKENS_SHOWN]]
    if (rest := sum(found.values()) - sum(list(found.values())[:_TOKENS_SHOWN])) > 0:
        shown.append(f"others {rest:,}")
    return ", ".join(shown)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none.

    Raises:
        BadInput: it is damaged or of another version.
    """
    file = folder / MANIFEST_FILE
    if not file.exists():
        return None
    try:
        manifest: dict[str, Any] = parse_json(file.read_bytes())
        version = manifest["version"]
        if version == MANIFEST_VERSION and not _is_complete(manifest):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file} is damaged; delete {folder} and prepare again") from error
    if version != MANIFEST_VERSION:
        raise BadInput(
            f"{file} has version {version}, this program reads {MANIFEST_VERSION}; delete {folder} "
            "and prepare again"
        )
    return manifest


def _is_complete(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has all that is read from it; what is not even looked up raises."""
    identity, length = manifest["identity"], manifest["sequence_length"]
    counts: list[Any] = []
    for domain in manifest["domains"].values():
        counts += [value for key, value in domain.items() if key != "special_tokens"]
        counts += domain["special_tokens"].values()
    for parts in manifest["tokenized"].values():
        for part in parts.values():
            counts += [part[key] for key in ("documents", "tokens", "empty")]
            counts += part["special_tokens"].values()
    DocumentFormat(**manifest["document_format"])
    return (
        isinstance(manifest["fingerprint"], str)
        and manifest["dtype"] in _DTYPES
        and all(isinstance(count, int) and count >= 0 for count in [*counts, length - 1])
        and all(
            domain.keys() == DomainCounts.__annotations__.keys()
            for domain in manifest["domains"].values()
        )
        and all("source" in parts for parts in manifest["tokenized"].values())
        and manifest["domains"].keys() <= manifest["tokenized"].keys() <= identity["domains"].keys()
        and isinstance(identity["tokenizer"], str)
        and all(isinstance(identity[part], dict) for part in ("settings", "domains"))
        and manifest["places"].keys() == identity["domains"].keys()
        and all({"source", "validation"} <= place.keys() for place in manifest["places"].values())
        and not any("/" in name or name in {"", ".", ".."} for name in identity["domains"])
    )


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest at once: a reader finds the old one or the new one."""
    atomic_write(folder / MANIFEST_FILE, json.dumps(manifest, indent=1))
