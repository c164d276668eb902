"""What befalls files: cut off, altered, no room on the disk."""

import errno
from pathlib import Path
from typing import Any

FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(*_: Any) -> None:
    raise FULL


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def flip(file: Path, place: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])
