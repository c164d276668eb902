"""Where the text of a domain comes from, and the checks that need not read it."""

import errno
import glob
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from drpruning.common.errors import BadInput
from drpruning.common.files import FOLDER_NAME
from drpruning.common.hub import HUB_NAME
from drpruning.data.remote import (
    RemoteFile,
    RemoteText,
    check_address,
    is_address,
    list_files,
    unreachable,
    without_secrets,
)
from drpruning.data.text_files import (
    READABLE,
    TextFile,
    TextFiles,
    describe_skipped,
    kind_of,
    reason_to_skip,
    search_folder,
    search_pattern,
)

_SAVED_DATASET = ("dataset_dict.json", "state.json")  # what datasets' save_to_disk leaves
_SPECIAL: dict[str, Callable[[int], bool]] = {
    "pipe": stat.S_ISFIFO,
    "socket": stat.S_ISSOCK,
    "device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


@dataclass(frozen=True, kw_only=True)
class DomainSource:
    """The description of one domain, as the user gave it.

    Attributes:
        name: of the domain; also of its folder, so letters, digits, `_`, `-` and `.` only.
        source: path or glob of .jsonl, .json, .csv, .tsv, .txt (also .gz or .zst) or .parquet
            files, a folder of these (with its subfolders), the same at an address that fsspec
            knows (s3://...), a folder written by `Dataset.save_to_disk`, or the name of a Hugging
            Face dataset. A .txt file is one document.
        text_field: where the text is in a row; dots lead into nested rows.
        where: keep the rows whose field (dots as above) equals the value, or is one of the values
            where a list is given.
        validation: a separate source for validation, read like `source`; None holds documents of
            `source` out.
        split: of a Hugging Face dataset.
        validation_split: of a Hugging Face dataset named in `validation`.
        config: configuration ("subset") of a Hugging Face dataset.
        trained: whether there are to be train blocks; if not, all of `source` is for validation.
        source_field: the recipe's field that `source` is from: `validation` where nothing is to be
            trained on and there is one; its text is then taken in its order, as it else is.
    """

    name: str
    source: str
    text_field: str = "text"
    where: Mapping[str, object] = field(default_factory=dict)
    validation: str | None = None
    split: str = "train"
    validation_split: str = "validation"
    config: str | None = None
    trained: bool = True
    source_field: Literal["source", "validation"] = "source"

    @property
    def in_order(self) -> bool:
        """Whether `source` is taken in its order, as far as there are blocks to fill."""
        return self.source_field == "validation"

    @property
    def parts(self) -> tuple[bool, ...]:
        """What `validation` of `resolve` can be: True too where there is a validation source."""
        return (False,) if self.validation is None else (False, True)

    # Looked for once per object: `dataclasses.replace` gives one that looks again.

    @cached_property
    def _text(self) -> "NamedSource":
        return _resolve(self, validation=False)

    @cached_property
    def _validation_text(self) -> "NamedSource":
        return _resolve(self, validation=True)

    @cached_property
    def _located(self) -> "Source":
        return _locate(self, validation=False)

    @cached_property
    def _located_validation(self) -> "Source":
        return _locate(self, validation=True)


@dataclass(frozen=True)
class HubDataset:
    """A source that the `datasets` library loads: a name on the Hub, or a folder it saved."""

    name: str
    config: str | None
    split: str
    folder: Path | None = None


Source = TextFiles | HubDataset
"""A source that can be read."""
NamedSource = Source | RemoteText
"""What is known of a source without a network."""
_Part = Path | RemoteFile | HubDataset | RemoteText
_Where = tuple[str, ...]


def resolve(domain: DomainSource, *, validation: bool = False) -> NamedSource:
    """The files or the dataset that a domain's source (or validation source) names.

    They are looked for at the first call, and what was found then holds for this object. No network
    is used: an address comes back as it is.

    Raises:
        BadInput: a path, glob or folder that holds nothing readable, an unknown extension, or what
            is no regular file.
    """
    return domain._validation_text if validation else domain._text


def locate(domain: DomainSource, *, validation: bool = False) -> Source:
    """The files or the dataset that a domain's source names, also where they are at an address.

    Raises:
        BadInput: see `resolve`; or an address that cannot be reached.
    """
    return domain._located_validation if validation else domain._located


def _label(domain: DomainSource, *, validation: bool) -> str:
    return f"data.domains.{domain.name}.{'validation' if validation else domain.source_field}"


def _locate(domain: DomainSource, *, validation: bool) -> Source:
    source = resolve(domain, validation=validation)
    if not isinstance(source, RemoteText):
        return source
    label = _label(domain, validation=validation)
    files, folder = list_files(source.address, label)
    if folder is not None:
        reasons = {file: reason_to_skip(file.path.removeprefix(folder)) for file in files}
        skipped = [(file.path.removeprefix(folder), why) for file, why in reasons.items() if why]
        files = [file for file, why in reasons.items() if why is None]
    else:
        skipped = []
    for file in files:
        if kind_of(file.name) is None:
            raise BadInput(f"{label}: {file} is not a {READABLE} file")
    if not files:
        raise BadInput(f"{label}: {source} has no {READABLE} file")
    if not any(file.size != 0 for file in files):
        raise BadInput(f"{label}: {source} is empty")
    return TextFiles(tuple(files), tuple(skipped))


def _resolve(domain: DomainSource, *, validation: bool) -> NamedSource:
    label = _label(domain, validation=validation)
    source = domain.validation if validation else domain.source
    split = domain.validation_split if validation else domain.split
    if not source:
        raise BadInput(f"{label} is empty: name a file, a folder or a Hugging Face dataset")
    if is_address(source):
        check_address(source, label)
        return RemoteText(source)
    path = Path(source.removeprefix("file://"))
    try:
        if path.is_dir() and any((path / marker).is_file() for marker in _SAVED_DATASET):
            return HubDataset(path.name, domain.config, split, folder=path)
        found = _found(path, source, label)
        if found is None and may_be_hub_name(source):
            return HubDataset(source, domain.config, split)
        if found is None:
            raise BadInput(f"{label}: {source} does not exist")
        for file in found.files:
            _check_file(Path(str(file)), label)
        if not any(Path(str(file)).stat().st_size for file in found.files):
            raise BadInput(f"{label}: {source} is empty")
    except OSError as error:  # from a folder on the way that may not be searched, for example
        raise unreadable(label, error.filename or path, error) from error
    return found


def _found(path: Path, source: str, label: str) -> TextFiles | None:
    """List what a path, glob or folder names, in the order of reading; None if nothing exists."""
    if path.is_dir():
        found = search_folder(path)
        if not found.files:
            others = f"; it has {describe_skipped(found.skipped)}" if found.skipped else ""
            raise BadInput(f"{label}: the folder {source} has no {READABLE} file{others}")
        return found
    if path.is_symlink() or path.exists():
        return TextFiles((path,))
    if not glob.has_magic(source):
        return None
    found = search_pattern(path)
    if not found.files:
        raise BadInput(f"{label}: no file matches {source}")
    return found


def _check_file(file: Path, label: str) -> None:
    """Refuse what is no readable file of text; files are read twice, which no pipe allows."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise BadInput(f"{label}: {file} is a link to a file that does not exist") from None
    for kind, matches in _SPECIAL.items():
        if matches(mode):
            raise BadInput(
                f"{label}: {file} is a {kind}, which cannot be read more than once; write the text "
                "to a file and name that"
            )
    if kind_of(file.name) is None:
        raise BadInput(f"{label}: {file} is not a {READABLE} file")
    if not os.access(file, os.R_OK):
        raise unreadable(label, file, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def unreadable(label: str, file: TextFile | str, error: Exception) -> BadInput:
    """Make the error for a file or folder that the system does not let us read."""
    if isinstance(file, RemoteFile):
        return unreachable(label, str(file), error)
    if isinstance(error, PermissionError):
        return BadInput(
            f"{label}: {file} cannot be read: permission denied; change its permissions, or "
            "name another"
        )
    if isinstance(error, FileNotFoundError):
        return BadInput(
            f"{label}: {file} was removed while it was in use; put it back, or name another"
        )
    reason = getattr(error, "strerror", None) or error
    return BadInput(f"{label}: {file} cannot be read: {reason}; put a complete file in its place")


def may_be_hub_name(source: str) -> bool:
    """Whether a source has the form of a dataset's name on the Hub."""
    return bool(HUB_NAME.fullmatch(source)) and kind_of(source) is None


def check_sources(domains: Sequence[DomainSource], *, remote: bool = False) -> None:
    """Refuse sources that cannot work, before anything is read.

    A name on the Hugging Face Hub is looked up only when the dataset is read.

    Args:
        domains: all of them.
        remote: look for the files at addresses too, which needs a network.

    Raises:
        BadInput: no domains, an unusable or repeated name, a source that is missing, empty or of
            an unknown kind, a file that may not be read, a file both for training and for
            validation (of the same domain or of two that `where` does not tell apart), or one file
            in two domains that `where` does not tell apart.
    """
    if not domains:
        raise BadInput("data.domains is empty: give at least one domain with a source")
    seen: set[str] = set()
    users: dict[tuple[_Part, _Where], str] = {}
    validators: dict[tuple[_Part, _Where], str] = {}
    for domain in domains:
        label = f"data.domains.{domain.name}"
        if not FOLDER_NAME.fullmatch(domain.name):
            raise BadInput(
                f"{label}: a domain's name is made of at most 100 letters, digits, '_', '-' and "
                "'.', and does not start with '.'"
            )
        if domain.name.lower() in seen:
            raise BadInput(f"{label}: there is another domain of that name; rename one of them")
        seen.add(domain.name.lower())
        if not domain.text_field:
            raise BadInput(f"{label}.text_field is empty: name the field that holds the text")
        find = locate if remote else resolve
        train = _parts(find(domain))
        if domain.validation is not None:
            validation = _parts(find(domain, validation=True))
            validators |= {(part, _frozen(domain.where)): domain.name for part in validation}
            if both := train & validation:
                raise BadInput(
                    f"{label}.validation: {_shown(min(both, key=str))} is in the source as well; "
                    "use other files, or leave validation out to hold documents out"
                )
        for part in train:
            other = users.setdefault((part, _frozen(domain.where)), domain.name)
            if other != domain.name:
                raise BadInput(
                    f"{label}.{domain.source_field}: {_shown(part)} is used by "
                    f"data.domains.{other} too, and `where` does not tell them apart"
                )
    trained_on = {domain.name for domain in domains if domain.trained}
    for part, where in (key for key in validators if users.get(key) in trained_on):
        trained, validated = users[part, where], validators[part, where]
        raise BadInput(
            f"data.domains.{validated}.validation: {_shown(part)} is the training text of "
            f"data.domains.{trained}; use other files, or leave validation out to hold documents "
            "out"
        )


def _parts(source: NamedSource) -> set[_Part]:
    if isinstance(source, TextFiles):
        return {f.resolve() if isinstance(f, Path) else f for f in source.files}
    return {source}


def _shown(part: _Part) -> str:
    return f"{part.name} (split {part.split})" if isinstance(part, HubDataset) else str(part)


def skipped_lines(domains: Sequence[DomainSource], *, remote: bool = False) -> list[str]:
    """One line for each source with files that are not read: how many, their names, and why.

    Args:
        domains: all of them.
        remote: also of sources at addresses, which `locate` has found.
    """
    find, lines = (locate if remote else resolve), []
    for domain in domains:
        for validation in domain.parts:
            found = find(domain, validation=validation)
            if isinstance(found, TextFiles) and found.skipped:
                named = domain.validation if validation else domain.source
                lines.append(
                    f"{_label(domain, validation=validation)}: not read in "
                    f"{without_secrets(named or '')}: {describe_skipped(found.skipped)}"
                )
    return lines


def _frozen(where: Mapping[str, object]) -> _Where:
    return tuple(sorted(f"{key}={value!r}" for key, value in where.items()))
