"""A disk that fills up in the middle of a line of a log."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drpruning.common.errors import TrainingError
from drpruning.runs.log import JsonLines


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """The system writes what fits into a file of this size and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_was_written_in_part_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = JsonLines(path)
    lines.write({"a": 1})
    before = path.read_bytes()
    with at_most(len(before) + 3):
        with pytest.raises(TrainingError, match=f"{path.name} cannot be written: File too large"):
            lines.write({"a": 2})
        assert path.read_bytes() == before
    lines.write({"a": 3})
    assert [record["a"] for record in lines.read()] == [1, 2, 3]
