"""Checkpoints: when to save one, how it appears complete or not at all, which one to resume from.

A checkpoint is a folder `PHASE-STEP` with tensors, state.json and a manifest. It is filled under a
temporary name, synced and renamed; before it is read, every file is compared with the manifest.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from drpruning.common.errors import BadInput
from drpruning.common.files import discard, fsync_path, publish
from drpruning.recipe import Checkpoint
from drpruning.training.distributed import any_rank
from drpruning.training.manifest import verify, write_manifest

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the layout of a checkpoint; one of another version is not read."""
STATE_FILE = "state.json"
_NO_CHECKPOINT, _NO_GOOD_ONE = -1, -2


class CheckpointManager:
    """The checkpoints of one phase. Every rank calls every method, in the same order."""

    def __init__(
        self,
        folder: Path,
        phase: str,
        settings: Checkpoint,
        accelerator: Accelerator,
    ):
        """Prepare to save and find checkpoints; nothing is read or written yet.

        Args:
            folder: The `checkpoints` folder, the same for every rank.
            phase: `prune` or `pretrain`.
            settings: When to save and what to keep.
            accelerator: The ranks.
        """
        self.folder, self.phase, self.settings = folder, phase, settings
        self._accelerator = accelerator
        self._damaged: set[Path] = set()
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after this many steps; the main process's clock decides for all ranks."""
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
        """Save one checkpoint and remove those that need not be kept.

        Args:
            step: Steps done.
            state: Gives all that is not a tensor, as JSON values; called on the main process only.
            write: Writes and syncs this rank's tensors into the given folder. May raise `OSError`.

        Returns:
            The error that prevented it, on every rank if it befell one; None once it is saved.
            After an error nothing of it is left, and earlier checkpoints are untouched.
        """
        final = self._place(step)
        temporary = self.folder / f".{final.name}.partial"
        header = {"version": VERSION, "phase": self.phase, "step": step}

        def begin() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            # Only this folder: if the run folder has been removed, it must not be made again.
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir()
            fsync_path(self.folder.parent)

        def finish() -> None:
            text = json.dumps({"step": step} | dict(state()))
            (temporary / STATE_FILE).write_text(text, encoding="utf-8")
            write_manifest(temporary, header)
            publish(temporary, final)

        # Every rank waits for all others between the three parts. So the folder exists before any
        # rank writes into it, the manifest lists what all of them wrote, and it is renamed last:
        # under its final name a checkpoint is complete, whenever the power fails.
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
                self._damaged.discard(final)
                self._remove_old(step)
        return error

    def latest(self) -> Path | None:
        """The latest checkpoint that is complete and undamaged; None if the phase has none at all.

        Damaged ones are passed over with a warning each and stay where they are. What a crash left
        unfinished is removed.

        Raises:
            BadInput: There are some, but none can be used.
        """
        found, reason = _NO_CHECKPOINT, ""
        if self._accelerator.is_main_process:
            _remove_unfinished(self.folder, self.phase)
            for path in reversed(list_checkpoints(self.folder, self.phase)):
                step = step_of(path)
                header = {"version": VERSION, "phase": self.phase, "step": step}
                if (fault := verify(path, header)) is None:
                    found = step
                    break
                found, reason = _NO_GOOD_ONE, reason or f"{path.name}: {fault}"
                self._damaged.add(path)
                logger.warning("checkpoint %s is passed over: %s", path.name, fault)
        found = int(broadcast(torch.tensor(found, device=self._accelerator.device)).item())
        if found == _NO_GOOD_ONE:
            raise BadInput(
                f"{self.folder}: no checkpoint of {self.phase} can be used "
                f"({reason or 'see above'}); put a good one back, resume with the version of "
                f"drprune that saved them, or remove {self.folder / self.phase}-* to start the "
                "phase from scratch"
            )
        return None if found == _NO_CHECKPOINT else self._place(found)

    def _place(self, step: int) -> Path:
        return self.folder / f"{self.phase}-{step:08d}"

    def _remove_old(self, step: int) -> None:
        """Keep the latest good ones and every `keep_every`-th; damaged ones do not count."""
        good = [
            path
            for path in list_checkpoints(self.folder, self.phase)
            if step_of(path) <= step and path not in self._damaged
        ]
        for path in good[: -self.settings.keep]:
            if not _is_permanent(path, self.settings.keep_every):
                _remove(path)

    def _on_main(self, action: Callable[[], None]) -> OSError | None:
        main = self._accelerator.is_main_process
        return self._on_every_rank(action if main else lambda: None)

    def _on_every_rank(self, action: Callable[[], None]) -> OSError | None:
        """Do something on every rank and wait for all; an error on one rank is returned on all."""
        own = None
        try:
            action()
        except OSError as error:
            own = error
        if any_rank(self._accelerator, own is not None):
            return own or OSError("another rank could not write its part")
        return None


def read_state(path: Path) -> dict[str, Any]:
    """All that is not a tensor in a checkpoint that `CheckpointManager.latest` has verified."""
    state: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return state


def list_checkpoints(folder: Path, phase: str) -> list[Path]:
    """The checkpoints of a phase, good or damaged, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(rf"{phase}-\d{{8,}}", p.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Steps that were done when a checkpoint was saved."""
    return int(path.name.rpartition("-")[2])


def remove_checkpoints(folder: Path, phase: str, settings: Checkpoint) -> None:
    """Remove a phase's checkpoints, once its result is safe, except every `keep_every`-th."""
    _remove_unfinished(folder, phase)
    for path in list_checkpoints(folder, phase):
        if not _is_permanent(path, settings.keep_every):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; a warning if that is not possible, as training does not depend on it."""
    try:
        discard(path)
    except OSError as error:
        logger.warning("checkpoint %s cannot be removed: %s", path.name, error.strerror)


def _is_permanent(path: Path, keep_every: int | None) -> bool:
    return keep_every is not None and step_of(path) % keep_every == 0


def _remove_unfinished(folder: Path, phase: str) -> None:
    for path in folder.glob(f".{phase}-*"):
        shutil.rmtree(path, ignore_errors=True)
