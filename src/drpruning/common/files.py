"""Files and folders that appear complete or not at all, locks, JSON, and checks of places."""

import contextlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from drpruning.common.errors import BadInput, FolderLocked

LOCK_FILE = ".lock"
FOLDER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""Names that become a folder's: none of them leads out of the folder that it is put in."""
LOCK_PROBE = 0.05
"""Seconds, many times as long as `is_locked` holds the lock of a folder."""
LARGEST_JSON = 100_000_000
"""Bytes of a JSON file that is read, unless a reader says otherwise."""


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, to a file under a temporary name; rename it in one step.

    Raises:
        OSError: It cannot be written; an earlier file stays, and no draft is left behind.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.unlink(missing_ok=True)  # of a crash, or a link that someone has put there
        with draft.open("xb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        atomic_replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def atomic_replace(draft: Path, path: Path) -> None:
    """Rename a complete file in one step; it is on the disk once this returns.

    The order matters: content first, then the name, then the folder's list of names. Otherwise a
    power failure could leave the final name on a file without its content.
    """
    fsync_path(draft)
    draft.replace(path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Let only one process work in a folder; the lock, `.lock` in it, ends with the process.

    Raises:
        FolderLocked: Another process holds the lock; `refusal` is the message.
    """
    with (folder / LOCK_FILE).open("a") as file:
        try:
            _take_lock(file)
        except OSError:
            time.sleep(LOCK_PROBE)  # it may have been `is_locked`, in another process
            try:
                _take_lock(file)
            except OSError:
                raise FolderLocked(refusal) from None
        # Worker processes that outlive a killed parent must not keep holding it.
        os.register_at_fork(after_in_child=file.close)
        yield


def _take_lock(file: IO[str]) -> None:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(folder: Path) -> bool | None:
    """Whether a process works in a folder under `folder_lock`; None where nothing shows it.

    There is no way to ask that does not hold the lock for an instant.
    """
    import fcntl

    try:
        with (folder / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, as in a copy, or a file system without locks
        return None
    return False


def check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that could not be made or not be written to; nothing of it stays.

    Args:
        folder: An existing folder, or one to be made.
        option: What named it, for the message.

    Raises:
        BadInput: It is not a folder, cannot be made, or cannot be written to.
    """
    try:
        nearest = next(
            place for place in (folder, *folder.parents) if place.is_symlink() or place.exists()
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{option}: {str(folder)!r} cannot be a folder: {reason}") from None
    if not nearest.is_dir():
        kind = "a file" if nearest.exists() else "a link that leads nowhere"
        raise BadInput(f"{option}: {nearest} is {kind}; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInput(f"{option}: {nearest} cannot be written to; name another folder")
    if nearest != folder:
        try:  # permissions do not say everything: /proc lets nobody make a folder
            Path(tempfile.mkdtemp(prefix=".drprune-", dir=nearest)).rmdir()
        except OSError as error:
            raise BadInput(
                f"{option}: {folder} cannot be made ({error.strerror}); name another folder"
            ) from None


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
        trial.unlink(missing_ok=True)  # of a crash, or a link that someone has put there
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise BadInput(f"{option} {path}: {error.strerror}; name another file") from None


def check_output_file(path: Path, option: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse an output file that could not be written, or whose place holds something of the user.

    What may be written to is a new place, or a file that this program wrote for the same purpose.

    Args:
        path: The file to be; folders above it are made.
        option: What named it, for the message.
        is_ours: Whether an existing regular file is one of these.

    Raises:
        BadInput: There is another file, a link, or anything else; or as `check_writable`.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{option} {path}: {reason}; name another file") from None
    if mode is not None and not stat.S_ISDIR(mode):
        if stat.S_ISLNK(mode):
            raise BadInput(f"{option} {path}: is a symbolic link; name the file itself")
        if not stat.S_ISREG(mode):
            raise BadInput(f"{option} {path}: exists and is no regular file; name another")
        if not is_ours(path):
            raise BadInput(
                f"{option} {path}: exists and was not written by this command, which would "
                "replace it; name another file, or remove this one"
            )
    check_writable(path, option)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested too deeply.
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


def is_file(path: Path, field: str) -> bool:
    """Whether there is such a file.

    Args:
        path: The file.
        field: The field of the recipe that it belongs to, for the message.

    Raises:
        BadInput: A folder above it does not let us look.
    """
    try:
        return path.is_file()
    except PermissionError as error:
        raise unreadable(f"{field}: {path}", error) from None


def unreadable(name: str, error: OSError) -> BadInput:
    """The error for a file that the system does not let us read."""
    reason = (error.strerror or str(error)).lower()
    remedy = "change its permissions" if isinstance(error, PermissionError) else "name another"
    return BadInput(f"{name} cannot be read: {reason}; {remedy}")


def dumps(value: Any, indent: int | None = None) -> str:
    """The value as JSON; numbers keep every bit, those that are not finite become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


# Folders that appear and disappear in one step.


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Fill a new folder in the block; it appears complete at the end, or not at all."""
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
    """Rename a complete folder to its final name, so that a crash leaves it complete or absent.

    Every file is on the disk before the folder is renamed. An earlier folder is renamed away first,
    for a folder cannot replace one that has files.
    """
    for path in [*temporary.rglob("*"), temporary]:
        fsync_path(path)
    if final.exists():
        discard(final)
    temporary.rename(final)
    fsync_path(final.parent)


def discard(path: Path) -> None:
    """Remove a folder, renamed first so that no part of it is ever seen under its name."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)
