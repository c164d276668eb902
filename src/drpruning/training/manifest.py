"""The manifest of a folder: every file with its size and checksum, so that damage is found.

CRC-32 finds what storage does to files (torn writes, flipped bits, blocks of zeros), comes with
Python, and reads as fast as most disks; it does not protect against deliberate changes.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drpruning.common.files import parse_json

MANIFEST_FILE = "manifest.json"
_BUFFER_BYTES = 1 << 20
_MOST_THREADS = 16


def write_manifest(folder: Path, header: Mapping[str, Any]) -> None:
    """List the files of a folder; to be called when everything else in it is written.

    Args:
        folder: Its files are listed, but not folders in it or names with a leading dot.
        header: What the folder is, plain JSON values.

    Raises:
        OSError: A file cannot be read or the manifest not be written.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "crc32": checksum}
        for name, checksum in _checksums(folder, names).items()
    }
    text = json.dumps(with_checksum({"header": dict(header), "files": files}))
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def verify(folder: Path, header: Mapping[str, Any]) -> str | None:
    """Compare a folder with its manifest.

    Args:
        folder: The folder; files that the manifest does not list are ignored.
        header: What the manifest must say that the folder is.

    Returns:
        The first file that is missing, torn or altered, and how; None if nothing is wrong.
    """
    try:
        _check(folder, header)
    except _Fault as fault:
        return str(fault)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is damaged"
    return None


class _Fault(Exception):  # noqa: N818 - of a file, not of the program
    pass


def _check(folder: Path, header: Mapping[str, Any]) -> None:
    content = without_checksum(parse_json((folder / MANIFEST_FILE).read_bytes()))
    found, files = content["header"], content["files"]
    for key, value in header.items():
        if found.get(key) != value:
            raise _Fault(f"{MANIFEST_FILE} has {key} {found.get(key)}, not {value}")
    for name, listed in files.items():
        if (size := (folder / name).stat().st_size) != listed["bytes"]:
            raise _Fault(f"{name} has {size} bytes, not {listed['bytes']}")
    for name, checksum in _checksums(folder, files).items():
        if checksum != files[name]["crc32"]:
            raise _Fault(f"{name} is altered (its checksum differs)")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values and, as `crc32`, their checksum."""
    return {**content, "crc32": _own_checksum(content)}


def without_checksum(content: Any) -> dict[str, Any]:
    """Undo `with_checksum`.

    Args:
        content: The parsed JSON of its result.

    Raises:
        ValueError: There is no checksum, or it is not that of the values.
    """
    if not isinstance(content, dict) or "crc32" not in content:
        raise ValueError("has no checksum")
    rest = {key: value for key, value in content.items() if key != "crc32"}
    if content["crc32"] != _own_checksum(rest):
        raise ValueError("does not match its checksum")
    return rest


def _own_checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """CRC-32 of every file, in threads: reading and summing release Python's lock."""
    names = list(names)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: Path) -> int:
    buffer, value = memoryview(bytearray(_BUFFER_BYTES)), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return value
