"""Checkpoints: when they are saved, how they appear whole or not at all, which one is gone on from.

A checkpoint is a folder `PHASE-STEP` with tensors, state.json and a manifest. It is filled beside
its place, synced and renamed; before it is read, every file is compared with the manifest.
"""

import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.common.files import discard, fsync_path, parse_json, publish
from drpruning.recipe import Checkpoint
from drpruning.training.distributed import any_rank

VERSION = 1
STATE_FILE = "state.json"
_NONE_THERE, _NONE_GOOD = -1, -2


class CheckpointManager:
    """The checkpoints of one phase. Every rank calls every method, in the same order."""

    def __init__(
        self,
        folder: Path,
        phase: str,
        settings: Checkpoint,
        accelerator: Accelerator,
        reporter: Reporter,
    ):
        """Nothing is read or written yet.

        Args:
            folder: The `checkpoints` folder, the same for every rank.
            phase: `prune` or `pretrain`.
            settings: When to save and what to keep.
            accelerator: The ranks.
            reporter: Is told what is wrong with a checkpoint, and where one cannot be saved.
        """
        self.folder, self.phase, self.settings = folder, phase, settings
        self._accelerator, self._reporter = accelerator, reporter
        self._faulty: set[Path] = set()
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after this many steps; of the time the main process's clock decides."""
        settings = self.settings
        if step % settings.every_steps == 0:
            return True
        if settings.keep_every is not None and step % settings.keep_every == 0:
            return True
        if settings.every_minutes is None:
            return False
        minutes = (time.monotonic() - self._last) / 60
        due = self._accelerator.is_main_process and minutes >= settings.every_minutes
        return any_rank(self._accelerator, due)

    def save(
        self, step: int, state: Callable[[], Mapping[str, Any]], write: Callable[[Path], None]
    ) -> OSError | None:
        """Save one checkpoint and drop those that need not be kept.

        Args:
            step: Steps done.
            state: Gives what is no tensor, JSON-able; asked on the main process only.
            write: Writes this rank's tensors into the folder that it is given; a rank that writes
                on another host than the first syncs its files. May raise `OSError`.

        Returns:
            What kept it from being saved, the same way on every rank, None where it is saved. Then
            nothing of it is left, and what was saved before stands.
        """
        final = self._place(step)
        temporary = self.folder / f".{final.name}.partial"
        header = {"version": VERSION, "phase": self.phase, "step": step}

        def begin() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            # Not the folders above it: a run that has vanished is no run.
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir()
            fsync_path(self.folder.parent)

        def finish() -> None:
            text = json.dumps({"step": step} | dict(state()))
            (temporary / STATE_FILE).write_text(text, encoding="utf-8")
            write_manifest(temporary, header)
            publish(temporary, final)

        error = (
            self._on_main(begin)
            or self._on_every_rank(lambda: write(temporary))
            or self._on_main(finish)
        )
        self._last = time.monotonic()
        if self._accelerator.is_main_process:
            if error is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                self._faulty.discard(final)
                self._drop_old(step)
        return error

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, None where there is none at all.

        Those that are torn, altered or incomplete are passed over with a line each and stay where
        they are. What a crash left unfinished is removed.

        Raises:
            BadInput: There are some, but none of them is whole.
        """
        found, reason = _NONE_THERE, ""
        if self._accelerator.is_main_process:
            _remove_unfinished(self.folder, self.phase)
            for path in reversed(list_checkpoints(self.folder, self.phase)):
                step = step_of(path)
                header = {"version": VERSION, "phase": self.phase, "step": step}
                if (fault := verify(path, header)) is None:
                    found = step
                    break
                found, reason = _NONE_GOOD, reason or f"{path.name}: {fault}"
                self._faulty.add(path)
                self._reporter.warn(f"checkpoint {path.name} is passed over: {fault}")
        found = int(broadcast(torch.tensor(found, device=self._accelerator.device)).item())
        if found == _NONE_GOOD:
            raise BadInput(
                f"{self.folder}: no checkpoint of {self.phase} is whole ({reason or 'see above'}); "
                f"put a good one back, or remove {self.folder / self.phase}-* to begin the phase "
                "afresh"
            )
        return None if found == _NONE_THERE else self._place(found)

    def _place(self, step: int) -> Path:
        return self.folder / f"{self.phase}-{step:08d}"

    def _drop_old(self, step: int) -> None:
        """Keep the newest good ones and those that stay for good; faulty ones do not count."""
        good = [
            path
            for path in list_checkpoints(self.folder, self.phase)
            if step_of(path) <= step and path not in self._faulty
        ]
        for path in good[: -self.settings.keep]:
            if not _stays(path, self.settings.keep_every):
                try:
                    discard(path)
                except OSError as error:
                    self._reporter.warn(f"checkpoint {path.name} cannot be removed: {error}")

    def _on_main(self, action: Callable[[], None]) -> OSError | None:
        main = self._accelerator.is_main_process
        return self._on_every_rank(action if main else lambda: None)

    def _on_every_rank(self, action: Callable[[], None]) -> OSError | None:
        """Do it on every rank, all wait for all; the error, on every rank, if one rank has one."""
        own = None
        try:
            action()
        except OSError as error:
            own = error
        if any_rank(self._accelerator, own is not None):
            return own or OSError("another rank could not write its part")
        return None


def read_state(path: Path) -> dict[str, Any]:
    """What is no tensor in a checkpoint that `CheckpointManager.newest` has found whole."""
    state: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return state


def list_checkpoints(folder: Path, phase: str) -> list[Path]:
    """The checkpoints of a phase, whole or damaged, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(rf"{phase}-\d{{8,}}", p.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Steps that were done when a checkpoint was saved."""
    return int(path.name.rpartition("-")[2])


def remove_checkpoints(folder: Path, phase: str, settings: Checkpoint) -> None:
    """Drop a phase's checkpoints, once its result is safe, but those that stay for good."""
    _remove_unfinished(folder, phase)
    for path in list_checkpoints(folder, phase):
        if not _stays(path, settings.keep_every):
            discard(path)


def _stays(path: Path, keep_every: int | None) -> bool:
    return keep_every is not None and step_of(path) % keep_every == 0


def _remove_unfinished(folder: Path, phase: str) -> None:
    for path in folder.glob(f".{phase}-*"):
        shutil.rmtree(path)


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


def verify(folder: Path, header: Mapping[str, Any]) -> str | None:
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
