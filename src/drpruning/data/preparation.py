"""Text -> tokenized blocks on disk: every source read once, an interruption costs one domain."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput
from drpruning.common.files import (
    LOCK_FILE,
    atomic_replace,
    check_folder,
    folder_lock,
    missing_folders,
    remove_empty,
)
from drpruning.data.blocks import (
    MANIFEST_FILE,
    MANIFEST_VERSION,
    DomainCounts,
    PreparedData,
    read_manifest,
    write_manifest,
)
from drpruning.data.documents import Documents, DomainWriter, collect
from drpruning.data.fingerprint import Identity, differences, fingerprint_of, identify
from drpruning.data.permutation import Indices
from drpruning.data.readers import RowReader
from drpruning.data.sources import DomainSource, HubDataset, LocalFiles, check_sources, resolve
from drpruning.data.tokenization import DocumentTokenizer

_HELD_OUT_AT_MOST = 0.1
_COPY_TOKENS = 1 << 24

Progress = Callable[[str, int, int], None]


def prepare(
    domains: Sequence[DomainSource],
    *,
    tokenizer: str | Path,
    vocab_size: int | None,
    sequence_length: int,
    validation_blocks: int,
    folder: Path | str,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> PreparedData:
    """Tokenize every domain and pack it into blocks of `sequence_length` tokens.

    Documents end with the tokenizer's EOS token and follow one another without padding; only what
    fills no block at the end is dropped. Documents without text are left out. A document of the
    validation set is in no train block, nor is another document with the same text.

    Existing data with the same fingerprint is not prepared again. A preparation that was
    interrupted or refused resumes with the domains that were not finished; one that was refused
    before the first leaves nothing behind. A source shared by several domains is read once.

    Args:
        domains: what to read.
        tokenizer: folder or Hub name.
        vocab_size: rows of the model's embedding, None where no model is at hand.
        sequence_length: tokens a block, at least 2.
        validation_blocks: per domain, at least 1. Without a validation source whole documents are
            held out, in an order given by `seed` and their text, up to a tenth of the tokens.
        folder: for the result; made where it does not exist.
        seed: of the choice of held-out documents.
        workers: processes for tokenization; default: one for each processor.
        on_progress: called with domain, bytes (or rows of a dataset) done, and in all.

    Returns:
        The prepared data.

    Raises:
        BadInput: something given cannot work, or another process prepares data in the folder.
    """
    check_sources(domains)
    check_prepared_folder(Path(folder))
    _check_least("data.sequence_length", sequence_length, 2)
    _check_least("data.validation_blocks", validation_blocks, 1)
    job = _Preparation(
        folder=Path(folder),
        tokenizer=DocumentTokenizer.load(tokenizer, vocab_size),
        sequence_length=sequence_length,
        validation_blocks=validation_blocks,
        seed=seed,
        workers=workers or _processors(),
        on_progress=on_progress or (lambda _name, _done, _total: None),
    )
    missing = missing_folders(job.folder)
    try:
        with job.alone():
            job.prepare(domains)
    finally:
        remove_empty(missing)
    return PreparedData.open(job.folder)


def _check_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise BadInput(f"{field} must be at least {least}, got {value}")


def check_prepared_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than prepared data, or where none can be made.

    Raises:
        BadInput: So, or its manifest is damaged.
    """
    label = "data.prepared"
    try:
        manifest = read_manifest(folder)
    except OSError:
        manifest = None
    if manifest is None:
        check_folder(folder, label)
        if folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir()):
            raise BadInput(
                f"{label}: {folder} is not empty and holds no prepared data; give {label} another "
                "folder, or empty it"
            )
    elif not _is_finished(manifest):
        check_folder(folder, label)


def _is_finished(manifest: dict[str, Any]) -> bool:
    return all(name in manifest["domains"] for name in manifest["identity"]["domains"])


@dataclass(frozen=True, kw_only=True)
class _Preparation:
    """The settings of one preparation, and the steps that need them."""

    folder: Path
    tokenizer: DocumentTokenizer
    sequence_length: int
    validation_blocks: int
    seed: int
    workers: int
    on_progress: Progress

    @property
    def cache(self) -> Path:
        return self.folder / ".cache"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from preparing in the folder, unless all is there already."""
        found = read_manifest(self.folder)
        if found and _is_finished(found):
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        refusal = f"data.prepared: another process is preparing data in {self.folder}; wait for it"
        with folder_lock(self.folder, refusal):
            try:
                yield
            finally:
                if not (self.folder / MANIFEST_FILE).exists():
                    (self.folder / LOCK_FILE).unlink()

    def prepare(self, domains: Sequence[DomainSource]) -> None:
        """Prepare the domains that are not there yet."""
        manifest = self.manifest(domains)
        finished = manifest["domains"]
        unfinished = [domain for domain in domains if domain.name not in finished]
        try:
            for source, group in _grouped(unfinished):
                for name, counts in self.run(source, group).items():
                    finished[name] = asdict(counts)
                write_manifest(self.folder, manifest)
        except BadInput:
            for domain in unfinished:
                if domain.name not in finished:
                    shutil.rmtree(self.folder / domain.name, ignore_errors=True)
            if not finished:
                (self.folder / MANIFEST_FILE).unlink()
            raise
        finally:
            shutil.rmtree(self.cache, ignore_errors=True)

    def manifest(self, domains: Sequence[DomainSource]) -> dict[str, Any]:
        """The manifest of this data in the folder, begun where there is none.

        A preparation that failed can go on with another recipe, as long as the domains that were
        finished are the same in it.
        """
        identity = identify(
            domains,
            tokenizer_digest=self.tokenizer.digest,
            settings={
                "sequence_length": self.sequence_length,
                "validation_blocks": self.validation_blocks,
                "seed": self.seed,
            },
        )
        fingerprint = fingerprint_of(identity)
        found = read_manifest(self.folder)
        if found and found["fingerprint"] == fingerprint:
            return found
        if found and not _can_resume(found, identity):
            raise BadInput(_mismatch_message(self.folder, found["identity"], identity))
        manifest = {
            "version": MANIFEST_VERSION,
            "fingerprint": fingerprint,
            "tokenizer": self.tokenizer.name,
            "eos_id": self.tokenizer.eos_id,
            "sequence_length": self.sequence_length,
            "dtype": self.tokenizer.dtype.name,
            "identity": identity,
            "domains": found["domains"] if found else {},
        }
        write_manifest(self.folder, manifest)
        return manifest

    def run(
        self, source: LocalFiles | HubDataset, domains: Sequence[DomainSource]
    ) -> dict[str, DomainCounts]:
        """Tokenize and pack domains that share a source and a text field."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir()
        train = self._collect(source, domains, validation=False)
        validation: dict[str, Documents] = {}
        own = [domain for domain in domains if domain.validation is not None]
        for validation_source, group in _grouped(own, validation=True):
            validation |= self._collect(validation_source, group, validation=True)
        return {
            domain.name: self._pack(domain, train[domain.name], validation.get(domain.name))
            for domain in domains
        }

    def _collect(
        self,
        source: LocalFiles | HubDataset,
        domains: Sequence[DomainSource],
        *,
        validation: bool,
    ) -> dict[str, Documents]:
        part = "validation" if validation else "source"
        limit = self.validation_blocks * self.sequence_length if validation else None
        collectors = [
            DomainWriter(domain, self.cache / f"{domain.name}.{part}", limit) for domain in domains
        ]
        rows = RowReader(
            source,
            text_field=domains[0].text_field,
            others=[name for domain in domains for name in domain.where],
            label=f"data.domains.{domains[0].name}.{part}",
        )
        title = ", ".join(domain.name for domain in domains)
        collect(
            rows,
            collectors,
            self.tokenizer,
            seed=self.seed,
            workers=self.workers,
            report=lambda: self.on_progress(title, rows.done, rows.total),
        )
        return {
            collector.domain.name: collector.result(
                self.tokenizer.dtype, f"data.domains.{collector.domain.name}.{part}"
            )
            for collector in collectors
        }

    def _pack(
        self, domain: DomainSource, documents: Documents, own_validation: Documents | None
    ) -> DomainCounts:
        """Write a domain's train.bin and validation.bin."""
        length = self.sequence_length
        label = f"data.domains.{domain.name}"
        total = len(documents.tokens)
        if own_validation is None:
            held_out = _hold_out(documents, self.validation_blocks * length)
            validation, chosen = documents, held_out
        else:
            total += len(own_validation.tokens)
            validation, chosen = own_validation, np.arange(len(own_validation.lengths))
        validation_blocks = min(
            int(validation.lengths[chosen].sum()) // length, self.validation_blocks
        )
        if not validation_blocks:
            raise BadInput(_no_validation(label, documents, length, own=own_validation is not None))
        kept = ~np.isin(documents.hashes, validation.hashes[chosen])
        train_blocks = int(documents.lengths[kept].sum()) // length
        if not train_blocks:
            raise BadInput(
                f"{label}: {int(documents.lengths[kept].sum())} tokens are left for training (no "
                "text that is in validation too), less than one block of "
                f"{length}; give it more text or lower data.sequence_length"
            )
        target = self.folder / domain.name
        target.mkdir(exist_ok=True)
        _write(target / "train.bin", _runs(documents, kept), train_blocks * length)
        _write(target / "validation.bin", _each(validation, chosen), validation_blocks * length)
        return DomainCounts(
            documents=len(documents.lengths),
            tokens=total,
            empty_documents=documents.empty,
            duplicates=int((~kept).sum()) - (len(chosen) if own_validation is None else 0),
            validation_documents=len(chosen),
            train_blocks=train_blocks,
            validation_blocks=validation_blocks,
            dropped_tokens=total - (train_blocks + validation_blocks) * length,
        )


def _hold_out(documents: Documents, wanted: int) -> Indices:
    """Whole documents for validation, in the order of their hashes; of equal texts the first.

    The choice depends on texts and seed, not on how the documents are spread over files.
    """
    budget = int(_HELD_OUT_AT_MOST * len(documents.tokens))
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
    """Write the first `count` tokens; the file appears whole or not at all."""
    temporary = file.with_suffix(".tmp")
    left = count
    with temporary.open("wb") as stream:
        for piece in pieces:
            part = piece[:left]
            stream.write(part.astype(part.dtype.newbyteorder("<"), copy=False).data)
            left -= len(part)
    atomic_replace(temporary, file)


def _grouped(
    domains: Sequence[DomainSource], *, validation: bool = False
) -> list[tuple[LocalFiles | HubDataset, list[DomainSource]]]:
    """Domains by source and text field, so that each source is read once."""
    groups: dict[tuple[LocalFiles | HubDataset, str], list[DomainSource]] = {}
    for domain in domains:
        key = (resolve(domain, validation=validation), domain.text_field)
        groups.setdefault(key, []).append(domain)
    return [(source, group) for (source, _), group in groups.items()]


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _can_resume(manifest: dict[str, Any], here: Identity) -> bool:
    """Whether an unfinished preparation has finished nothing that differs from what is asked."""
    there, finished = manifest["identity"], manifest["domains"]
    if not finished:
        return True
    return (
        len(finished) < len(there["domains"])
        and there["tokenizer"] == here["tokenizer"]
        and there["settings"] == here["settings"]
        and all(there["domains"][name] == here["domains"].get(name) for name in finished)
    )


def _mismatch_message(folder: Path, there: Identity, here: Identity) -> str:
    found = differences(there, here) or ["the program's version"]
    return (
        f"{folder} holds data that was prepared otherwise; what differs: {'; '.join(found)}. Give "
        f"data.prepared another folder, or delete {folder}"
    )


def _no_validation(label: str, documents: Documents, length: int, *, own: bool) -> str:
    if own:
        return (
            f"{label}.validation: its text does not fill one block of {length} tokens; give it "
            "more text or lower data.sequence_length"
        )
    return (
        f"{label}: no whole documents within a tenth of its {len(documents.tokens)} tokens "
        f"({len(documents.lengths)} documents) fill one validation block of {length}; give "
        f"{label}.validation a source, the domain more or shorter documents, or lower "
        "data.sequence_length"
    )
