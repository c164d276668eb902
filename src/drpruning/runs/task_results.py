"""What a model scored on a task of lm-eval: one file for each, found again by what decides it."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from drpruning.common.files import atomic_write, dumps
from drpruning.common.unknown import record_fields
from drpruning.runs.typed_json import Number, read_file

_UNSAFE = re.compile(r"[^\w.@-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TaskKey:
    """All that decides a score; equal keys mean equal scores but for rounding.

    Attributes:
        fingerprint: Of the model's files.
        task: Name of the task, as lm-eval has it.
        shots: Examples in the prompt as they were asked for; None: as the task says.
        settings: A digest of the task's own settings and its prompt.
        limit: Documents at most; None: all.
        bos: Token that every text begins with; None: nothing.
        precision: `bf16` or `fp32`.
        lm_eval: Version of lm-eval.
    """

    fingerprint: str
    task: str
    shots: int | None
    settings: str
    limit: int | None
    bos: str | None
    precision: str
    lm_eval: str

    @property
    def file_name(self) -> str:
        """The task, readable, and a digest of everything."""
        shots = "" if self.shots is None else f"@{self.shots}"
        digest = hashlib.blake2b(dumps(asdict(self)).encode(), digest_size=12).hexdigest()
        return f"{_UNSAFE.sub('-', self.task)[:80]}{shots}-{digest}.json"


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """What lm-eval found.

    Attributes:
        shots: Examples in the prompt.
        metric: Which of the task's metrics the score is.
        higher_is_better: Whether a larger score is better.
        score: The metric over all documents; a proportion is from 0 to 1.
        documents: Number of documents.
        standard_error: Of the score, over documents; NaN where it is no mean of theirs.
        document_scores: The metric of each document in the order of the task, or its
            log-likelihood; empty where the metric has no number for a document.
    """

    shots: int
    metric: str
    higher_is_better: bool
    score: Number
    documents: int
    standard_error: Number
    document_scores: list[Number] = field(default_factory=list)

    @property
    def is_proportion(self) -> bool:
        """Whether it is one of the scores that are given in percent and averaged."""
        return self.higher_is_better and 0 <= self.score <= 1


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The score of one model on one task, under one prompt.

    Attributes:
        model: Name of the model for people, when it was measured.
        path: Its folder, or its name on the Hub, then.
        prompt: Number of the prompt, from 1 on; None: the task's own.
        key: What it was measured under.
        result: The score.
    """

    model: str
    path: str
    prompt: int | None
    key: TaskKey
    result: TaskScore


def read_task_result(folder: Path, key: TaskKey) -> TaskResult | None:
    """The result with a key; None where it has not been measured.

    Raises:
        BadInput: Its file is damaged.
    """
    return read_file(TaskResult, folder / key.file_name)


def read_task_results(folder: Path) -> list[TaskResult]:
    """All results in a folder, in the order in which they were written.

    Raises:
        BadInput: A file is damaged.
    """
    files = sorted(folder.glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    found = [read_file(TaskResult, file) for file in files]
    return [result for result in found if result is not None]


def write_task_result(folder: Path, result: TaskResult) -> None:
    """Write a result where `read_task_result` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / result.key.file_name, dumps(record_fields(result)) + "\n")


def compact(scores: Sequence[float]) -> list[float]:
    """The scores with whole numbers as such: most are 0 or 1, and there may be ten thousands."""
    return [int(score) if score in {0, 1} else score for score in scores]
