"""Speed and memory of models, as ``evaluation/speed.json`` has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drpruning.common.files import atomic_write, dumps
from drpruning.common.unknown import record_fields
from drpruning.runs.typed_json import Number, Texts, read_file


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What was measured several times: the median and the quartiles."""

    median: Number
    low: Number
    high: Number

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """From the samples; NaN where there are none."""
        if not samples:
            return cls(median=math.nan, low=math.nan, high=math.nan)
        low, median, high = (float(q) for q in np.quantile(samples, [0.25, 0.5, 0.75]))
        return cls(median=median, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class BatchSpeed:
    """Speed of a model with one batch size.

    Attributes:
        batch: Texts at once.
        prefill: Prompt tokens per second, of all texts together.
        decode: Written tokens per second, likewise.
        memory: Bytes at the peak, weights included; NaN where not known.
        prefill_times_source: Over that of the source measured in turn; 1 for the source itself.
        decode_times_source: Likewise.
        memory_times_source: Likewise.
    """

    batch: int
    prefill: Spread
    decode: Spread
    memory: Number
    prefill_times_source: Spread
    decode_times_source: Spread
    memory_times_source: Number


@dataclass(frozen=True, kw_only=True)
class ModelSpeed:
    """Speed of one model.

    Attributes:
        name: As in its evaluation.
        label: Name for people.
        path: The model.
        batches: By batch size; without those that did not fit into memory.
    """

    name: str
    label: str
    path: str
    batches: list[BatchSpeed]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of several models, measured in one call on one machine.

    Attributes:
        date: When, in UTC.
        machine: `device`, `cpu`, `cores` and `threads`.
        versions: Of packages.
        dtype: Of weights and arithmetic.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens that are written after it.
        repeats: How often each was measured.
        models: The source first.
    """

    date: str
    machine: Texts
    versions: Texts
    dtype: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    models: list[ModelSpeed]


def load_speed(file: Path) -> Speed | None:
    """Read a speed.json; None where there is none.

    Raises:
        BadInput: It is not what ``docs/run-folder.md`` says.
    """
    return read_file(Speed, file)


def write_speed(speed: Speed, file: Path) -> None:
    """Write a speed.json; an earlier one is replaced in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, dumps(record_fields(speed), indent=1) + "\n")
