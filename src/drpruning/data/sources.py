"""Where the text of a domain comes from, and the checks that need not read it."""

import errno
import glob
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.common.files import FOLDER_NAME, HUB_NAME

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
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
        source: path or glob of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, a folder of
            these (with its subfolders), a folder written by `Dataset.save_to_disk`, or the name of
            a Hugging Face dataset. A .txt file is one document.
        text_field: where the text is in a row; dots lead into nested rows.
        where: keep the rows whose field (dots as above) equals the value, or is one of the values
            where a list is given.
        validation: a separate source for validation, read like `source`; None holds documents of
            `source` out.
        split: of a Hugging Face dataset.
        validation_split: of a Hugging Face dataset named in `validation`.
        config: configuration ("subset") of a Hugging Face dataset.
    """

    name: str
    source: str
    text_field: str = "text"
    where: Mapping[str, object] = field(default_factory=dict)
    validation: str | None = None
    split: str = "train"
    validation_split: str = "validation"
    config: str | None = None

    # Looked for once per object: `dataclasses.replace` gives one that looks again.

    @cached_property
    def _text(self) -> "LocalFiles | HubDataset":
        return _resolve(self, validation=False)

    @cached_property
    def _validation_text(self) -> "LocalFiles | HubDataset":
        return _resolve(self, validation=True)


@dataclass(frozen=True)
class LocalFiles:
    """A source of files on this machine, in the order in which they are read."""

    files: tuple[Path, ...]


@dataclass(frozen=True)
class HubDataset:
    """A source that the `datasets` library loads: a name on the Hub, or a folder it saved."""

    name: str
    config: str | None
    split: str
    folder: Path | None = None


_Part = Path | HubDataset
_Where = tuple[str, ...]


def resolve(domain: DomainSource, *, validation: bool = False) -> LocalFiles | HubDataset:
    """The files or the dataset that a domain's source (or validation source) names.

    They are looked for at the first call, and what was found then holds for this object.

    Raises:
        BadInput: a path, glob or folder that holds nothing readable, an unknown extension, or what
            is no regular file.
    """
    return domain._validation_text if validation else domain._text


def _resolve(domain: DomainSource, *, validation: bool) -> LocalFiles | HubDataset:
    label = f"data.domains.{domain.name}.{'validation' if validation else 'source'}"
    source = domain.validation if validation else domain.source
    split = domain.validation_split if validation else domain.split
    if not source:
        raise BadInput(f"{label} is empty: name a file, a folder or a Hugging Face dataset")
    path = Path(source)
    try:
        if path.is_dir() and any((path / marker).is_file() for marker in _SAVED_DATASET):
            return HubDataset(path.name, domain.config, split, folder=path)
        found = _found(path, source, label)
        if found is None and may_be_hub_name(source):
            return HubDataset(source, domain.config, split)
        if found is None:
            raise BadInput(f"{label}: {source} does not exist")
        for file in found:
            _check_file(file, label)
        if not any(file.stat().st_size for file in found):
            raise BadInput(f"{label}: {source} is empty")
    except OSError as error:  # from a folder on the way that may not be searched, for example
        raise unreadable(label, error.filename or path, error) from error
    return LocalFiles(tuple(found))


def _found(path: Path, source: str, label: str) -> list[Path] | None:
    """List what a path, glob or folder names, in the order of reading; None if nothing exists."""
    if path.is_dir():
        found = sorted(_below(path))
        if not found:
            raise BadInput(f"{label}: the folder {source} has no {_one_of(EXTENSIONS)} file")
        return found
    if path.is_symlink() or path.exists():
        return [path]
    if not glob.has_magic(source):
        return None
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no "/"
    found = sorted(match for match in map(Path, matches) if not match.is_dir())
    if not found:
        raise BadInput(f"{label}: no file matches {source}")
    return found


def _below(folder: Path) -> Iterator[Path]:
    """List the files with the name of a text file in a folder and below, but for hidden ones."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(place, name)
            for name in names
            if name.endswith(EXTENSIONS) and not name.startswith(".")
        )


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
    if not file.name.endswith(EXTENSIONS):
        raise BadInput(f"{label}: {file} is not a {_one_of(EXTENSIONS)} file")
    if not os.access(file, os.R_OK):
        raise unreadable(label, file, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def unreadable(label: str, file: Path | str, error: OSError) -> BadInput:
    """Make the error for a file or folder that the system does not let us read."""
    if isinstance(error, PermissionError):
        return BadInput(
            f"{label}: {file} cannot be read: permission denied; allow reading it, or name another"
        )
    if isinstance(error, FileNotFoundError):
        return BadInput(
            f"{label}: {file} was removed while it was in use; put it back, or name another"
        )
    reason = error.strerror or error
    return BadInput(f"{label}: {file} cannot be read: {reason}; put a complete file in its place")


def may_be_hub_name(source: str) -> bool:
    """Whether a source has the form of a dataset's name on the Hub."""
    return bool(HUB_NAME.fullmatch(source)) and not source.endswith(EXTENSIONS)


def check_sources(domains: Sequence[DomainSource]) -> None:
    """Refuse sources that cannot work, before anything is read.

    A name on the Hugging Face Hub is looked up only when the dataset is read.

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
        train = _parts(resolve(domain))
        if domain.validation is not None:
            validation = _parts(resolve(domain, validation=True))
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
                    f"{label}.source: {_shown(part)} is used by data.domains.{other} too, and "
                    "`where` does not tell them apart"
                )
    for part, where in users.keys() & validators.keys():
        trained, validated = users[part, where], validators[part, where]
        raise BadInput(
            f"data.domains.{validated}.validation: {_shown(part)} is the training text of "
            f"data.domains.{trained}; use other files, or leave validation out to hold documents "
            "out"
        )


def _parts(source: LocalFiles | HubDataset) -> set[_Part]:
    if isinstance(source, LocalFiles):
        return {f.resolve() for f in source.files}
    return {source}


def _shown(part: _Part) -> str:
    return str(part) if isinstance(part, Path) else f"{part.name} (split {part.split})"


def _frozen(where: Mapping[str, object]) -> _Where:
    return tuple(sorted(f"{key}={value!r}" for key, value in where.items()))


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
