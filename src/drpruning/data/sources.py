"""Where the text of a domain comes from, and what can be said of it without reading it."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.common.files import FOLDER_NAME, HUB_NAME

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
_SAVED_DATASET = ("dataset_dict.json", "state.json")  # what datasets' save_to_disk leaves
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class DomainSource:
    """One domain as the user described it.

    Attributes:
        name: of the domain; also of its folder, so letters, digits, `_`, `-` and `.` only.
        source: path or glob of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, a folder of
            these (with its subfolders), a folder written by `Dataset.save_to_disk`, or the name of
            a Hugging Face dataset. A .txt file is one document.
        text_field: where the text is in a row; dots lead into nested rows.
        where: keep the rows whose field (dots as above) equals the value, or is one of the values
            where a list is given.
        validation: a source of its own for validation, read like `source`; None holds documents
            of `source` out.
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


@dataclass(frozen=True)
class LocalFiles:
    """A source of files on this machine, in the order in which they are read."""

    files: tuple[Path, ...]


@dataclass(frozen=True)
class HubDataset:
    """A source that `datasets` loads: a name on the Hub, or a folder it saved."""

    name: str
    config: str | None
    split: str
    folder: Path | None = None


def resolve(domain: DomainSource, *, validation: bool = False) -> LocalFiles | HubDataset:
    """What the domain's source (or its validation source) means on this machine.

    Raises:
        BadInput: a path, glob or folder that holds nothing readable, or an unknown extension.
    """
    label = f"data.domains.{domain.name}.{'validation' if validation else 'source'}"
    source = domain.validation if validation else domain.source
    split = domain.validation_split if validation else domain.split
    if not source:
        raise BadInput(f"{label} is empty: name a file, a folder or a Hugging Face dataset")
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise BadInput(f"{label}: {source}: there is no such home folder") from None
    if path.is_dir():
        if any((path / marker).is_file() for marker in _SAVED_DATASET):
            return HubDataset(path.name, domain.config, split, folder=path)
        found = sorted(f for f in path.rglob("*") if f.is_file() and _readable(f, path))
        if not found:
            raise BadInput(f"{label}: the folder {source} has no {_one_of(EXTENSIONS)} file")
    elif path.is_file():
        found = [path]
    elif glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no "/"
        found = sorted(f for f in map(Path, matches) if f.is_file())
        if not found:
            raise BadInput(f"{label}: no file matches {source}")
    elif may_be_hub_name(source):
        return HubDataset(source, domain.config, split)
    else:
        raise BadInput(f"{label}: {source} does not exist")
    if unknown := [f for f in found if not f.name.endswith(EXTENSIONS)]:
        raise BadInput(f"{label}: {unknown[0]} is not a {_one_of(EXTENSIONS)} file")
    if not any(f.stat().st_size for f in found):
        raise BadInput(f"{label}: {source} is empty")
    return LocalFiles(tuple(found))


def may_be_hub_name(source: str) -> bool:
    """Whether a source can be the name of a dataset on the Hub."""
    return bool(HUB_NAME.fullmatch(source)) and not source.endswith(EXTENSIONS)


def check_sources(domains: Sequence[DomainSource]) -> None:
    """Find what cannot work before anything is read.

    Names on the Hugging Face Hub are only looked up when they are read.

    Raises:
        BadInput: no domains, an unusable or repeated name, a source that is missing, empty or of
            an unknown kind, a file in both train and validation, or one file in two domains that
            `where` does not tell apart.
    """
    if not domains:
        raise BadInput("data.domains is empty: give at least one domain with a source")
    seen: set[str] = set()
    users: dict[tuple[object, ...], str] = {}
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
            both = train & _parts(resolve(domain, validation=True))
            if both:
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


def estimate_tokens(domain: DomainSource) -> int | None:
    """About how many tokens a domain has, at four bytes of file a token.

    Returns:
        None where file sizes do not tell: compressed files, parquet, Hugging Face datasets, and
        rows chosen by `where`.
    """
    source = resolve(domain)
    if isinstance(source, HubDataset) or domain.where:
        return None
    if not all(f.name.endswith((".jsonl", ".txt")) for f in source.files):
        return None
    return sum(f.stat().st_size for f in source.files) // _BYTES_PER_TOKEN


def _readable(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.name.endswith(EXTENSIONS)


def _parts(source: LocalFiles | HubDataset) -> set[Path | HubDataset]:
    if isinstance(source, LocalFiles):
        return {f.resolve() for f in source.files}
    return {source}


def _shown(part: Path | HubDataset) -> str:
    return str(part) if isinstance(part, Path) else f"{part.name} (split {part.split})"


def _frozen(where: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(f"{key}={value!r}" for key, value in where.items()))


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
