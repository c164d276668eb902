"""metrics.jsonl: one JSON object a line, cut back to a checkpoint when a run goes on from it."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drpruning.json_text import dumps


class JsonLines:
    """An append-only file of JSON objects whose length is part of a checkpoint."""

    def __init__(self, path: Path):
        """Append to `path`; it is created with its first line."""
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object."""
        line = dumps(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def size(self) -> int:
        """Bytes written so far, safely on disk once this returns."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes."""
        if self.path.exists() and self.path.stat().st_size > size:
            os.truncate(self.path, size)

    def read(self) -> list[dict[str, Any]]:
        """All objects."""
        return [record for _, record in self._records()]

    def cut_from(self, first: Callable[[dict[str, Any]], bool]) -> None:
        """Drop everything from the first object that `first` is true of, and a torn last line."""
        for start, record in self._records():
            if first(record):
                self.cut(start)
                return

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each object with the byte it starts at; a line that a crash tore is cut off."""
        if not self.path.exists():
            return
        start = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                self.cut(start)
                return
            yield start, json.loads(line)
            start += len(line)


class MetricsLog(JsonLines):
    """metrics.jsonl of a run folder, for one phase."""

    def __init__(self, folder: Path, phase: str):
        """Append to `folder`/metrics.jsonl."""
        super().__init__(folder / "metrics.jsonl")
        self._phase = phase

    def forget_phase(self) -> None:
        """Drop what an earlier try at this phase, of which nothing was saved, has written."""
        self.cut_from(lambda record: record["phase"] == self._phase)

    def record(self, kind: str, step: int, **fields: Any) -> None:
        """Append a record of this phase; its fields are those of docs/run-folder.md."""
        stamp = {"kind": kind, "phase": self._phase, "step": step, "time": time.time()}
        self.write(stamp | fields)
