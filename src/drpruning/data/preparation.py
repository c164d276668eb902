"""Text -> tokenized blocks on disk: each source is read once; an interruption costs one domain."""

import logging
import os
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import (
    LOCK_FILE,
    check_folder,
    folder_lock,
    missing_folders,
    remove_empty,
)
from drpruning.data.blocks import (
    MANIFEST_FILE,
    MANIFEST_VERSION,
    PreparedData,
    read_manifest,
    write_manifest,
)
from drpruning.data.document_format import DocumentFormat
from drpruning.data.documents import Documents, DomainWriter, collect
from drpruning.data.fingerprint import (
    Identity,
    check_unchanged,
    fingerprint_of,
    identify,
    identity_differences,
)
from drpruning.data.packing import DomainDocuments, DomainSplit, TooLittleText, split_domains
from drpruning.data.readers import RowReader
from drpruning.data.remote import RemoteText, without_secrets
from drpruning.data.sources import (
    DomainSource,
    Source,
    check_sources,
    locate,
    resolve,
    skipped_lines,
)
from drpruning.data.tokenization import DocumentTokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
CACHE_FOLDER = ".cache"
"""Where tokens wait; emptied at the end, so it is ours only where there is a manifest."""


def prepare(
    domains: Sequence[DomainSource],
    *,
    tokenizer: str | Path,
    vocab_size: int | None,
    sequence_length: int,
    validation_blocks: int,
    folder: Path | str,
    document_format: DocumentFormat | None = None,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> PreparedData:
    """Tokenize every domain and pack it into blocks of `sequence_length` tokens.

    Documents begin and end with the tokenizer's markers, as `document_format` says, and follow one
    another without padding; only what fills no block at the end is dropped. Documents without text
    are left out. Text that is in the validation set of any domain is in the train blocks of none.

    Data with the same fingerprint are not prepared again. What was interrupted or refused resumes
    with the domains that were not tokenized. A source shared by several domains is read once.

    Args:
        domains: what to read.
        tokenizer: folder or Hub name.
        vocab_size: rows of the model's embedding, None where no model is at hand.
        sequence_length: tokens per block, at least 2.
        validation_blocks: per domain, at least 1. Without a validation source documents are held
            out, in an order given by `seed` and their text, up to a tenth of the tokens.
        folder: for the result; made where it does not exist.
        document_format: what documents begin and end with, and what special tokens in them are.
        seed: of the choice of held-out documents.
        workers: processes for tokenization; default: one per processor.
        on_progress: called with the domain, the bytes (or rows of a dataset) done, and their total.

    Raises:
        BadInput: an argument or a source cannot work, or another process prepares in the folder.
    """
    _find_text(domains, on_progress)
    check_prepared_folder(Path(folder))
    wanted = document_format or DocumentFormat()
    job = _Preparation(
        folder=Path(folder),
        tokenizer=DocumentTokenizer.load(tokenizer, vocab_size, wanted),
        document_format=wanted,
        sequence_length=sequence_length,
        validation_blocks=validation_blocks,
        seed=seed,
        workers=workers or _processors(),
        on_progress=on_progress or (lambda _name, _done, _total: None),
    )
    job.check_sizes()
    missing = missing_folders(job.folder)
    try:
        with job.alone():
            job.prepare(domains)
    finally:
        remove_empty(missing)
    return PreparedData.open(job.folder)


def _find_text(domains: Sequence[DomainSource], on_progress: Progress | None) -> None:
    """Find the text of every domain, and report each address before a network is waited for."""
    check_sources(domains)
    for domain in domains:
        for validation in domain.parts:
            address = resolve(domain, validation=validation)
            if on_progress is not None and isinstance(address, RemoteText):
                on_progress(f"looking at {address}", 0, 1)
            locate(domain, validation=validation)
    check_sources(domains, remote=True)


def check_prepared_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than prepared data, or where none can be made.

    Raises:
        BadInput: the folder holds other files, cannot be made or written to, or its manifest is
            damaged.
    """
    label = "data.prepared"
    try:
        manifest = read_manifest(folder)
    except OSError:
        manifest = None
    if manifest is None:
        check_folder(folder, label)
        if folder.is_dir() and any(
            path.name[0] != "." or path.name == CACHE_FOLDER for path in folder.iterdir()
        ):
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
    document_format: DocumentFormat
    sequence_length: int
    validation_blocks: int
    seed: int
    workers: int
    on_progress: Progress

    def check_sizes(self) -> None:
        """Refuse blocks that are too short to train on, or no validation blocks."""
        for field, least in (("sequence_length", 2), ("validation_blocks", 1)):
            if (value := getattr(self, field)) < least:
                raise BadInput(f"data.{field} must be at least {least}, got {value}")

    @property
    def cache(self) -> Path:
        return self.folder / CACHE_FOLDER

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from preparing in the folder, unless the data is complete."""
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
        """Prepare the domains that are not finished yet.

        All domains are tokenized before the first is packed, since what one has for validation is
        left out of the training blocks of the others. The tokens wait in the cache.
        """
        manifest = self.manifest(domains)
        if not _is_finished(manifest):
            try:
                self.tokenize(domains, manifest)
                self.pack(domains, manifest)
            except BadInput:
                if not manifest["tokenized"]:
                    (self.folder / MANIFEST_FILE).unlink()
                raise
            finally:
                self._clear_cache({} if _is_finished(manifest) else manifest["tokenized"])

    def tokenize(self, domains: Sequence[DomainSource], manifest: dict[str, Any]) -> None:
        """Tokenize into the cache the domains that are not in the manifest yet."""
        tokenized = manifest["tokenized"]
        for line in skipped_lines(domains, remote=True):
            logger.warning("%s", line)
        for source, group in _grouped([d for d in domains if d.name not in tokenized]):
            train = self._collect(source, group, validation=False)
            validation: dict[str, Documents] = {}
            own = [domain for domain in group if domain.validation is not None]
            for validation_source, readers in _grouped(own, validation=True):
                validation |= self._collect(validation_source, readers, validation=True)
            for domain in group:
                check_unchanged(domain, manifest["identity"]["domains"][domain.name])
                name = domain.name  # too little text is refused now, not after the last domain
                self._split([_documents(domain, train[name], validation.get(name))])
            for name, documents in train.items():
                tokenized[name] = {"source": documents.counts()}
            for name, documents in validation.items():
                tokenized[name]["validation"] = documents.counts()
            write_manifest(self.folder, manifest)

    def pack(self, domains: Sequence[DomainSource], manifest: dict[str, Any]) -> None:
        """Write the blocks of the domains that are tokenized and not finished."""
        try:
            splits = self._split([self._tokenized(domain, manifest) for domain in domains])
        except TooLittleText as error:
            del manifest["tokenized"][error.domain]
            write_manifest(self.folder, manifest)
            raise
        for split in splits:
            name = split.found.name
            if name not in manifest["domains"]:
                split.write(self.folder / name)
                manifest["domains"][name] = asdict(split.counts)
                write_manifest(self.folder, manifest)
                split.found.source.file.unlink()

    def manifest(self, domains: Sequence[DomainSource]) -> dict[str, Any]:
        """The manifest of this data in the folder, begun where there is none.

        A preparation that failed can be resumed with another recipe, as long as the domains that
        were tokenized are the same in it.
        """
        identity = identify(
            domains,
            tokenizer_digest=self.tokenizer.digest,
            settings={
                "sequence_length": self.sequence_length,
                "validation_blocks": self.validation_blocks,
                "seed": self.seed,
                **self.tokenizer.settings,
            },
        )
        fingerprint = fingerprint_of(identity)
        found = read_manifest(self.folder)
        if found and found["fingerprint"] == fingerprint:
            return found
        if found and not _can_resume(found, identity):
            different = identity_differences(found["identity"], identity)
            raise BadInput(mismatch_message(self.folder, different))
        done = found["tokenized"] if found else {}
        if found and found["identity"]["settings"] != identity["settings"]:
            # The settings say where to stop reading a validation source, and nothing of the rest.
            known = identity["domains"]
            done = {
                name: parts
                for name, parts in done.items()
                if "validation" not in parts and "order" not in known[name]
            }
        manifest = {
            "version": MANIFEST_VERSION,
            "fingerprint": fingerprint,
            "tokenizer": self.tokenizer.name,
            "document_format": asdict(self.document_format),
            "bos_id": self.tokenizer.settings["bos_id"],
            "eos_id": self.tokenizer.settings["eos_id"],
            "sequence_length": self.sequence_length,
            "dtype": self.tokenizer.dtype.name,
            "identity": identity,
            "places": {domain.name: _places(domain) for domain in domains},
            "tokenized": done,
            "domains": {},
        }
        write_manifest(self.folder, manifest)
        return manifest

    def _split(self, domains: Sequence[DomainDocuments]) -> list[DomainSplit]:
        return split_domains(
            domains, sequence_length=self.sequence_length, validation_blocks=self.validation_blocks
        )

    def _tokenized(self, domain: DomainSource, manifest: dict[str, Any]) -> DomainDocuments:
        """Open the documents of a domain in the cache."""
        name = domain.name
        parts = {}
        for part, counts in manifest["tokenized"][name].items():
            file = self._file(name, part)
            try:
                parts[part] = Documents.open(file, self.tokenizer.dtype, counts)
                if name not in manifest["domains"]:
                    parts[part].check_tokens()
            except (OSError, ValueError) as error:
                raise BadInput(
                    f"the unfinished data in {self.folder} is damaged ({error}); delete "
                    f"{self.folder} and prepare again"
                ) from error
        return _documents(domain, parts["source"], parts.get("validation"))

    def _file(self, name: str, part: str) -> Path:
        return self.cache / name / part

    def _clear_cache(self, kept: Container[str]) -> None:
        """Remove the tokens of all domains but some."""
        for folder in self.cache.glob("*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        remove_empty([self.cache])

    def _collect(
        self,
        source: Source,
        domains: Sequence[DomainSource],
        *,
        validation: bool,
    ) -> dict[str, Documents]:
        part = "validation" if validation else "source"
        limit = self.validation_blocks * self.sequence_length
        collectors = [
            DomainWriter(
                domain,
                self._file(domain.name, part),
                limit if validation or domain.in_order else None,
            )
            for domain in domains
        ]
        for collector in collectors:
            collector.file.parent.mkdir(parents=True, exist_ok=True)
            collector.file.unlink(missing_ok=True)  # a process that was killed may have left one
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
            collector.domain.name: collector.finish(
                self.tokenizer.dtype, f"data.domains.{collector.domain.name}.{part}"
            )
            for collector in collectors
        }


def _places(domain: DomainSource) -> dict[str, str | None]:
    """The source and validation of a domain as they were named, but for passwords."""
    named = {"source": domain.source, "validation": domain.validation}
    return {part: None if name is None else without_secrets(name) for part, name in named.items()}


def _documents(
    domain: DomainSource, source: Documents, validation: Documents | None
) -> DomainDocuments:
    return DomainDocuments(domain.name, source, validation, domain.trained, domain.in_order)


def _grouped(
    domains: Sequence[DomainSource], *, validation: bool = False
) -> list[tuple[Source, list[DomainSource]]]:
    """Domains by source and text field, so that each source is read once."""
    groups: dict[tuple[Source, str], list[DomainSource]] = {}
    for domain in domains:
        key = (locate(domain, validation=validation), domain.text_field)
        groups.setdefault(key, []).append(domain)
    return [(source, group) for (source, _), group in groups.items()]


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_OF_DOCUMENTS = ("seed", "special_tokens", "bos_id", "eos_id")
"""Settings that the tokenized documents depend on; the others only decide how they are packed."""


def _can_resume(manifest: dict[str, Any], current: Identity) -> bool:
    """Whether nothing that is done differs from what is asked for, and more can be added to it."""
    saved, tokenized = manifest["identity"], manifest["tokenized"]
    return not tokenized or (
        not manifest["domains"]
        and saved["tokenizer"] == current["tokenizer"]
        and all(saved["settings"].get(key) == current["settings"][key] for key in _OF_DOCUMENTS)
        and all(saved["domains"][name] == current["domains"].get(name) for name in tokenized)
    )


def mismatch_message(folder: Path, different: Sequence[str]) -> str:
    """The message for a folder with data of other settings or text.

    Args:
        folder: Of the data.
        different: What `identity_differences` found.
    """
    found = different or ["the program's version"]
    return (
        f"data.prepared: {folder} holds data that was prepared with other settings or other text; "
        f"what differs: {'; '.join(found)}. Give data.prepared another folder, or delete {folder}"
    )
