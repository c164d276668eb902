"""Which files hold text, by the endings of their names, and which of a folder's are left out."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from drpruning.data.remote import RemoteFile

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
COMPRESSIONS = (".gz", ".zst")
PARQUET = ".parquet"
READABLE = f"{', '.join(FORMATS)} (also {' or '.join(COMPRESSIONS)}) or {PARQUET}"
"""The endings of files of text, for messages."""
_NAMES_SHOWN = 5

TextFile = Path | RemoteFile
Skipped = tuple[str, str]
"""The name of a file that is not read, and the reason."""


@dataclass(frozen=True)
class FileKind:
    """How the text in a file is to be read.

    Attributes:
        format: one of `FORMATS`, or `PARQUET`.
        compression: one of `COMPRESSIONS`, or nothing.
    """

    format: str
    compression: str = ""


@dataclass(frozen=True)
class TextFiles:
    """A source that is made of files, in the order in which they are read.

    Attributes:
        files: the files.
        skipped: what was found beside them and is not read.
    """

    files: tuple[TextFile, ...]
    skipped: tuple[Skipped, ...] = ()


def kind_of(name: str) -> FileKind | None:
    """The kind of a file by the ending of its name, in upper or lower case; None: not of text."""
    lower = name.lower()
    if lower.endswith(PARQUET):
        return FileKind(PARQUET)
    compression = next((ending for ending in COMPRESSIONS if lower.endswith(ending)), "")
    inner = lower.removesuffix(compression)
    return next((FileKind(form, compression) for form in FORMATS if inner.endswith(form)), None)


def reason_to_skip(name: str) -> str | None:
    """Why a file in a folder is not read, None where it is.

    Args:
        name: of the file, below the folder.
    """
    if any(part.startswith(".") for part in PurePosixPath(name).parts):
        return "hidden"
    return None if kind_of(name) else "of no kind that is read"


def search_folder(folder: Path) -> TextFiles:
    """All files of text in a folder and below it; whatever else is there is named as skipped.

    Raises:
        OSError: a folder cannot be searched.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    skipped: list[Skipped] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        for name in sorted(folders):
            below = Path(place, name)
            if name.startswith("."):
                skipped.append((f"{below.relative_to(folder)}/", "hidden"))
            elif below.is_symlink():  # it may lead back to here
                skipped.append((f"{below.relative_to(folder)}/", "a link to a folder"))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            reason = reason_to_skip(name)
            if reason is None:
                found.append(Path(place, name))
            else:
                skipped.append((str(Path(place, name).relative_to(folder)), reason))
    return TextFiles(tuple(sorted(found)), tuple(sorted(skipped)))


def search_pattern(path: Path) -> TextFiles:
    """All files that a glob matches; folders that it matches without their files are skipped."""
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - takes no "/"
    files = [match for match in matches if not match.is_dir()]
    inside = {parent for file in files for parent in file.parents}
    skipped = [
        (f"{match}/", "a folder") for match in matches if match.is_dir() and match not in inside
    ]
    return TextFiles(tuple(files), tuple(skipped))


def describe_skipped(skipped: Iterable[Skipped]) -> str:
    """How many files are not read and why, with the first names of each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped:
        reasons.setdefault(reason, []).append(name)
    return "; ".join(_describe(reasons))


def _describe(reasons: Mapping[str, list[str]]) -> Iterator[str]:
    for reason, names in reasons.items():
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        yield f"{len(names):,} {reason} ({', '.join(names[:_NAMES_SHOWN])}{more})"
