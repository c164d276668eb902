"""Checkpoints: when they are saved, how they appear whole or not at all, which one is gone on from.

A checkpoint is a folder `PHASE-STEP` with tensors, state.json and a manifest. It is filled beside
its place, synced and renamed; before it is read, every file is compared with the manifest.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from drpruning.console import Reporter
from drpruning.errors import BadInput
from drpruning.recipe import Checkpoint
from drpruning.training.manifest import find_fault, write_manifest
from drpruning.training.ranks import on_any_rank
from drpruning.whole_file import sync

VERSION = 1
STATE_FILE = "state.json"
_NONE_THERE, _NONE_GOOD = -1, -2


class Checkpoints:
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
        return on_any_rank(self._accelerator, due)

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
            sync(self.folder.parent)

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

    def newest(self) -> Path | None:
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
                if (fault := find_fault(path, header)) is None:
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
        if on_any_rank(self._accelerator, own is not None):
            return own or OSError("another rank could not write its part")
        return None


def read_state(path: Path) -> dict[str, Any]:
    """What is no tensor in a checkpoint that `Checkpoints.newest` has found whole."""
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


# Folders that appear and disappear at once.


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
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
        sync(path)
    if final.exists():
        discard(final)
    temporary.rename(final)
    sync(final.parent)


def discard(path: Path) -> None:
    """Remove a folder so that no part of it is ever seen in its place."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)
