"""metrics.jsonl: one JSON object a line, cut back to a checkpoint when a run goes on from it."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as null, as JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class JsonLines:
    """An append-only file of JSON objects whose length is part of a checkpoint."""

    def __init__(self, path: Path):
        """Append to `path`; it is created with its first line."""
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object."""
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
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
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


class MetricsLog(JsonLines):
    """metrics.jsonl of a run folder, for one phase."""

    def __init__(self, folder: Path, phase: str):
        """Append to `folder`/metrics.jsonl."""
        super().__init__(folder / "metrics.jsonl")
        self._phase = phase

    def record(self, kind: str, step: int, **fields: Any) -> None:
        """Append a record of this phase; its fields are those of docs/run-folder.md."""
        stamp = {"kind": kind, "phase": self._phase, "step": step, "time": time.time()}
        self.write(stamp | fields)
