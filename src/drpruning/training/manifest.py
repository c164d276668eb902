"""A list of a checkpoint's files with sizes and checksums, and the check against it.

The checksum is CRC-32 of every 64 MiB: it finds what storage does to a file (torn writes, flipped
bits, blocks of zeros), comes with Python, and runs on all cores at once, so 80 GB take seconds and
the disk sets the pace. It is no protection against someone who alters a file on purpose; nothing
that is read can run code.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from drpruning.json_text import parse_json

MANIFEST_FILE = "manifest.json"
PIECE_BYTES = 1 << 26
_BUFFER_BYTES = 1 << 20
_MOST_THREADS = 16


def write_manifest(folder: Path, header: Mapping[str, Any]) -> None:
    """List what is in a folder; to be called when everything else in it is written.

    Args:
        folder: Its files, not those in folders below or with a leading dot, are listed.
        header: What the folder is, plain JSON values.

    Raises:
        OSError: A file cannot be read or the manifest not be written.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "crc32": pieces}
        for name, pieces in _checksums(folder, names).items()
    }
    content = {"header": dict(header), "files": files}
    text = json.dumps(with_checksum(content))
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def find_fault(folder: Path, header: Mapping[str, Any]) -> str | None:
    """What is wrong with a folder that has a manifest, None where nothing is.

    Args:
        folder: The folder; files that the manifest does not list are not looked at.
        header: What the manifest must say that it is.

    Returns:
        The first file that is missing, torn or altered and how, in words.
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
    there, files = content["header"], content["files"]
    for key, value in header.items():
        if there.get(key) != value:
            raise _Fault(f"{MANIFEST_FILE} has {key} {there.get(key)}, not {value}")
    for name, listed in files.items():
        if (size := (folder / name).stat().st_size) != listed["bytes"]:
            raise _Fault(f"{name} has {size} bytes, not {listed['bytes']}")
    for name, pieces in _checksums(folder, files).items():
        if altered := [i for i, p in enumerate(pieces) if p != files[name]["crc32"][i]]:
            raise _Fault(f"{name} is altered (within 64 MiB from byte {altered[0] * PIECE_BYTES})")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values and, as `crc32`, their checksum."""
    return {**content, "crc32": _own_checksum(content)}


def without_checksum(content: Any) -> dict[str, Any]:
    """What was given to `with_checksum`.

    Args:
        content: What a JSON file of its result holds now.

    Raises:
        ValueError: That is something else.
    """
    if not isinstance(content, dict) or "crc32" not in content:
        raise ValueError("has no checksum")
    rest = {key: value for key, value in content.items() if key != "crc32"}
    if content["crc32"] != _own_checksum(rest):
        raise ValueError("does not fit its checksum")
    return rest


def _own_checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """CRC-32 of every piece of every file, in threads: reading and summing let go of Python."""
    pieces = [
        (name, start)
        for name in names
        for start in range(0, (folder / name).stat().st_size, PIECE_BYTES)
    ]
    found: dict[str, list[int]] = {name: [] for name in names}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        sums = pool.map(partial(_checksum, folder), pieces)
        for (name, _), value in zip(pieces, sums, strict=True):
            found[name].append(value)
    return found


def _checksum(folder: Path, piece: tuple[str, int]) -> int:
    name, start = piece
    buffer, value, left = memoryview(bytearray(_BUFFER_BYTES)), 0, PIECE_BYTES
    with (folder / name).open("rb", buffering=0) as file:
        file.seek(start)
        while left and (count := file.readinto(buffer[: min(left, _BUFFER_BYTES)])):
            value = zlib.crc32(buffer[:count], value)
            left -= count
    return value
