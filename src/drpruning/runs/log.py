"""Files of one JSON object per line, cut back to a checkpoint when a run resumes from it."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drpruning.common.errors import TrainingError
from drpruning.common.files import dumps, parse_json
from drpruning.runs.lines import Line

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT}


class JsonLines:
    """An append-only file of JSON objects whose length is part of a checkpoint.

    A disk that is full for a while does not end a run: lines wait until there is room, at the
    latest when `size` is asked for, which a checkpoint does.
    """

    def __init__(self, path: Path):
        """Append to `path`; it is created with its first line."""
        self.path = path
        self._waiting = b""

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object, now or once there is room on the disk.

        Raises:
            TrainingError: It cannot be written for another reason.
        """
        self._waiting += dumps(record).encode() + b"\n"
        try:
            self._write_waiting()
        except OSError as error:
            if error.errno not in _DISK_IS_FULL:
                raise TrainingError(
                    f"{self.path} cannot be written: {error.strerror}; what was saved stands: put "
                    "this right, then the same command resumes"
                ) from error

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        begin = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(self._waiting)
        except OSError:
            if self.path.exists():
                os.truncate(self.path, begin)
            raise
        self._waiting = b""

    def size(self) -> int:
        """Bytes written so far, safely on disk once this returns.

        Raises:
            OSError: They cannot be written.
        """
        self._write_waiting()
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def truncate(self, size: int) -> bool:
        """Drop everything after the first `size` bytes, and a torn last line.

        Returns:
            Whether there were that many bytes, all of them lines that can be read.
        """
        found = self.path.stat().st_size if self.path.exists() else 0
        if found > size:
            os.truncate(self.path, size)
        return all(record is not None for _, record in self._records()) and found >= size

    def read(self) -> list[dict[str, Any]]:
        """All objects; lines that something has damaged are left out."""
        self._write_waiting()
        return [record for _, record in self._records() if record is not None]

    def truncate_from(self, first: Callable[[dict[str, Any]], bool]) -> None:
        """Drop everything from the first object that `first` is true of, and a torn last line."""
        for start, record in self._records():
            if record is not None and first(record):
                os.truncate(self.path, start)
                return

    def _records(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Each object, None for a damaged one, and where it starts; a torn end is cut off."""
        start = 0
        for line in self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else ():
            yield start, _object(line)
            start += len(line) + 1
        if self.path.exists() and self.path.stat().st_size > start:
            os.truncate(self.path, start)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class MetricsLog(JsonLines):
    """metrics.jsonl of a run folder, for one phase."""

    def __init__(self, path: Path, phase: str):
        """Append to the file `path`."""
        super().__init__(path)
        self._phase = phase

    def drop_phase(self) -> None:
        """Drop what an earlier try at this phase, of which nothing was saved, has written."""
        self.truncate_from(lambda record: record.get("phase") == self._phase)

    def record(self, line: Line) -> None:
        """Append a record."""
        self.write(line.to_json())
