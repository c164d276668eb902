"""Writing a file so that it appears whole or not at all, and where that is possible."""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput

LOCK_FILE = ".lock"
FOLDER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""Names that become a folder's: none of them leads out of the folder that it is put in."""
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
"""Names that a model or a dataset on the Hugging Face Hub can have."""
LARGEST_JSON = 100_000_000
"""Bytes of a JSON file that is read, unless a reader says otherwise."""


def atomic_write(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and move it there in one step.

    Raises:
        OSError: It cannot be written; what was there stays, and no draft is left behind.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_text(text, encoding="utf-8")
        atomic_replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def atomic_replace(draft: Path, path: Path) -> None:
    """Give a file that is written its name in one step; once this returns, it is on the disk."""
    fsync_path(draft)
    draft.replace(path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Have the system write a file or a folder's list of names to the disk, and wait for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Only one process works in a folder; the lock, `.lock` in it, goes when the process ends.

    Raises:
        BadInput: Another one does; `refusal` is the message.
    """
    import fcntl

    with (folder / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(refusal) from None
        # Worker processes that outlive a killed parent must not go on holding it.
        os.register_at_fork(after_in_child=file.close)
        yield


def check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that could not be made, or not be written to; nothing is made.

    Args:
        folder: The folder to be, or that is there.
        option: What named it, for the message.

    Raises:
        BadInput: So.
    """
    try:
        there = next(
            place for place in (folder, *folder.parents) if place.is_symlink() or place.exists()
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{option}: {str(folder)!r} cannot be a folder: {reason}") from None
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link that leads nowhere"
        raise BadInput(f"{option}: {there} is {kind}; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{option}: {there} cannot be written to; name another folder")


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders one after the other, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def check_writable(path: Path, option: str) -> None:
    """Refuse a place where `atomic_write` could not write, before the work whose result goes there.

    Args:
        path: The file to be; folders above it are made.
        option: What named it, for the message.

    Raises:
        BadInput: It names no file, or a folder, or its folder cannot be made or written to.
    """
    try:
        if not path.name or path.is_dir():
            raise BadInput(f"{option} {path}: is no name of a file; add one")
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = path.with_name(f".{path.name}.partial")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise BadInput(f"{option} {path}: {error.strerror}; name another file") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except ValueError:  # Python's limit for whole numbers
        raise ValueError("a number has more than 4,300 digits") from None


def read_json_object(path: Path, label: str = "", largest: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        label: What the user named it with (a field, an option), for the message.
        largest: Bytes beyond which it is not read: a file that long is not what it should be.

    Raises:
        BadInput: It cannot be read, is too large, or does not hold a JSON object.
    """
    name = f"{label}: {path}" if label else str(path)
    try:
        size = path.stat().st_size
        text = path.read_bytes() if size <= largest else b""
    except OSError as error:
        raise unreadable(name, error) from None
    if size > largest:
        raise BadInput(
            f"{name} has {size:,} bytes, more than the {largest:,} that such a file can have; "
            "name another file"
        )
    try:
        content = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{name} does not hold a JSON object")
    return content


def unreadable(name: str, error: OSError) -> BadInput:
    """The error for a file that the system does not let us read."""
    reason = (error.strerror or str(error)).lower()
    remedy = "change its permissions" if isinstance(error, PermissionError) else "name another"
    return BadInput(f"{name} cannot be read: {reason}; {remedy}")


def dumps(value: Any, indent: int | None = None) -> str:
    """The value as JSON; numbers keep every bit, those that are not finite become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


# Folders that appear and disappear at once.


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A new folder that is filled in the block and put in its place at its end, or is gone."""
    temporary = final.with_name(f".{final.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish(temporary: Path, final: Path) -> None:
    """Put a folder that is complete in its place, so that a crash leaves it whole or absent."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync_path(path)
    if final.exists():
        discard(final)
    temporary.rename(final)
    fsync_path(final.parent)


def discard(path: Path) -> None:
    """Remove a folder so that no part of it is ever seen in its place."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)
