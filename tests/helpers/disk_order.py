"""Records in which order files are synced to the disk and given their names."""

import os
from pathlib import Path
from typing import Any

import pytest

State = tuple[int, int]
"""Size and time of the last change of a file or of a folder's list of names."""


class DiskOrder:
    """Watches `os.fsync` and every rename of this process.

    After a loss of power only what was synced before the rename is sure to be found under the new
    name, and the new name itself only once its folder is synced.

    Attributes:
        published: Final paths of all renames, in order; those to hidden names are left out.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.published: list[Path] = []
        self._unsynced: list[str] = []
        self._synced: dict[tuple[int, int], State] = {}
        self._names_to_sync: dict[tuple[int, int], Path] = {}
        self._fsync, self._rename, self._replace = os.fsync, os.rename, os.replace
        monkeypatch.setattr(os, "fsync", self._on_fsync)
        monkeypatch.setattr(os, "rename", self._on_rename)
        monkeypatch.setattr(os, "replace", self._on_replace)

    def is_synced(self, path: Path) -> bool:
        """Whether a file or a folder's list of names is on the disk as it is now."""
        key, state = _identity(path.stat())
        return self._synced.get(key) == state

    def faults(self) -> list[str]:
        """What a loss of power by now could have lost or torn, in words."""
        names = [f"the folder of {path} was not synced" for path in self._names_to_sync.values()]
        return self._unsynced + names

    def _on_fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        key, state = _identity(os.fstat(descriptor))
        self._synced[key] = state
        self._names_to_sync.pop(key, None)

    def _on_rename(self, source: Any, target: Any, **options: Any) -> None:
        self._before(Path(source), Path(target))
        self._rename(source, target, **options)
        self._after(Path(target))

    def _on_replace(self, source: Any, target: Any, **options: Any) -> None:
        self._before(Path(source), Path(target))
        self._replace(source, target, **options)
        self._after(Path(target))

    def _before(self, source: Path, target: Path) -> None:
        if not target.name.startswith("."):
            self._unsynced += [
                f"{target} got its name before {path.name} was synced"
                for path in (source, *source.rglob("*"))
                if not self.is_synced(path)
            ]

    def _after(self, target: Path) -> None:
        if not target.name.startswith("."):
            self.published.append(target)
            self._names_to_sync[_identity(target.parent.stat())[0]] = target


def _identity(found: os.stat_result) -> tuple[tuple[int, int], State]:
    return (found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns)
