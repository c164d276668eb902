"""Writing a file so that it appears whole or not at all."""

import contextlib
import os
from pathlib import Path

from drpruning.errors import BadInput


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and move it there in one step.

    Raises:
        OSError: It cannot be written; what was there stays, and no draft is left behind.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def check_writable(path: Path, option: str) -> None:
    """Refuse a place where `write_whole` could not write, before the work whose result goes there.

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
