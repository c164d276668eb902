"""What `drprune evaluate` says: models side by side, with intervals, and all of it as JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drpruning.common.unknown import record_fields
from drpruning.report.formats import UNKNOWN, decimals, factor, format_perplexity
from drpruning.report.table import Row, Table
from drpruning.runs.intervals import Difference, Domain, Pair, bootstrap, paired_differences

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_GAP = 2
"""Columns of text between two columns of a table."""
_EDGES = 2
"""Columns of text at the edges of a table."""
_LABEL = 20
"""Characters of a model's name that have a line of their own, at most."""
_PLUS_MINUS = "±: half the width of the 95% bootstrap interval over validation blocks"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of one model in one unit, each with its 95% interval where there is one.

    Attributes:
        values: Column of the table (see `Table.columns`) -> the number.
        intervals: Column -> its interval.
    """

    values: Mapping[str, float]
    intervals: Mapping[str, Pair]


def perplexities(table: Table, row: Row) -> Measured:
    """Perplexity per domain, average and worst."""
    intervals = dict(row.evaluation.interval)
    if table.summaries and (average := _average_interval(table, row)) is not None:
        intervals[table.summaries[0]] = average
    values = dict(zip(table.columns, table.values(row), strict=True))
    return Measured(values=values, intervals={name: _exp(pair) for name, pair in intervals.items()})


def _average_interval(table: Table, row: Row) -> Pair | None:
    """The interval of the mean loss over the domains that the table's average is over."""
    evaluation = row.evaluation
    if set(evaluation.loss) == set(table.common):
        return evaluation.average_interval
    losses = {d: evaluation.block_loss[d] for d in table.common if d in evaluation.block_loss}
    found = bootstrap({name: Domain.of(loss) for name, loss in losses.items()})[1]
    return found if len(losses) == len(table.common) else None


def differences(table: Table, row: Row) -> tuple[dict[str, Difference], Difference | None]:
    """By how much a model's losses are above its source's, block by block: domains, average."""
    if row.source is None:
        return {}, None
    same = [name for name in row.times_source if name in row.evaluation.block_loss]
    own, source = (
        {name: each.block_loss[name] for name in same if name in each.block_loss}
        for each in (row.evaluation, row.source)
    )
    found, _ = paired_differences(own, source)
    if not table.common or not set(table.common) <= found.keys():
        return found, None
    common = [{name: losses[name] for name in table.common} for losses in (own, source)]
    return found, paired_differences(*common)[1]


def times_source(table: Table, row: Row) -> Measured:
    """Perplexity over the source's, with intervals from the paired differences."""
    each, average = differences(table, row)
    intervals = {name: _exp(found.interval) for name, found in each.items()}
    if average is not None and table.summaries:
        intervals[table.summaries[0]] = _exp(average.interval)
    values = table.times_source(row) if row.times_source else [math.nan] * len(table.columns)
    return Measured(values=dict(zip(table.columns, values, strict=True)), intervals=intervals)


def bits_per_byte(table: Table, row: Row) -> Measured:
    """Bits per byte of text per domain, average and worst."""
    bits, intervals = row.evaluation.bits_per_byte, row.evaluation.bits_per_byte_interval
    known = [bits[name] for name in table.common if name in bits]
    values = {name: bits.get(name, math.nan) for name in table.domains}
    if table.summaries:
        complete = bool(known) and len(known) == len(table.common)
        sums = (math.fsum(known) / len(known), max(known)) if complete else (math.nan, math.nan)
        values |= dict(zip(table.summaries, sums, strict=True))
    return Measured(values=values, intervals=intervals)


def _exp(pair: Pair) -> Pair:
    low, high = (math.exp(end) if end < 700 else math.inf for end in pair)
    return low, high


# As text.


def evaluation_tables(table: Table, width: int) -> list["RichTable"]:
    """Lay everything out for a terminal: models in columns, in as many tables as fit.

    An interval is written as ± half its width, and left out where not one model would fit beside
    its labels. No number is broken.

    Args:
        table: What `results_table` gives.
        width: Characters of a line.
    """
    words = [word[:_LABEL] for row in table.rows for word in row.model.split()]
    for intervals in (True, False):
        sections = _sections(table, intervals=intervals)
        lines = [line for section in sections for line in section.lines]
        cells = [cell for line in lines for cell in line.cells]
        column = max(map(len, cells + words), default=0) + _GAP
        labels = [*(section.title for section in sections), *(line.label for line in lines)]
        count = (width - max(map(len, labels)) - _EDGES) // column
        if count >= 1:
            break
    count = max(1, count)
    parts = range(0, max(1, len(table.rows)), count)
    return [_render(table, sections, slice(first, first + count)) for first in parts]


@dataclass(frozen=True)
class _Line:
    label: str
    cells: list[str]
    best: list[bool]


@dataclass(frozen=True)
class _Section:
    title: str
    lines: list[_Line]


def _sections(table: Table, *, intervals: bool) -> list[_Section]:
    sizes = [
        _Line(label, [f"{getattr(row.parameters, name):,}" for row in table.rows], [])
        for label, name in (
            ("parameters", "total"), ("  embedding", "embedding"), ("  other", "other"),
        )
    ]  # fmt: skip
    best = table.best()
    found = [_Section("", sizes)]
    for title, measured, text in (
        ("perplexity", perplexities, format_perplexity),
        ("times the source", times_source, factor),
        ("bits per byte", bits_per_byte, _bits),
    ):
        models = [measured(table, row) for row in table.rows]
        if all(math.isnan(value) for model in models for value in model.values.values()):
            continue
        lines = [
            _Line(
                f"  {name}",
                [
                    text(model.values[name])
                    + (_half_width(model.intervals.get(name), text) if intervals else "")
                    for model in models
                ],
                [
                    measured is perplexities and row.recovered and model.values[name] == best[index]
                    for row, model in zip(table.rows, models, strict=True)
                ],
            )
            for index, name in enumerate(table.columns)
        ]
        found.append(_Section(title, lines))
    return found


def _bits(value: float) -> str:
    return UNKNOWN if math.isnan(value) else decimals(value, 3)


def _half_width(pair: Pair | None, text: Callable[[float], str]) -> str:
    if pair is None or not all(map(math.isfinite, pair)):
        return ""
    return f" ±{text((pair[1] - pair[0]) / 2).removeprefix('×')}"


def _render(table: Table, sections: Sequence[_Section], models: slice) -> "RichTable":
    from rich.text import Text

    from drpruning.common.console import make_table

    rows = table.rows[models]
    out = make_table("", *(Text(row.model) for row in rows))
    for section in sections:
        if section.title:
            out.add_section()
            out.add_row(section.title)
        for line in section.lines:
            best = line.best[models] or [False] * len(rows)
            styled = [
                Text(cell, style="bold" if is_best else "")
                for cell, is_best in zip(line.cells[models], best, strict=True)
            ]
            out.add_row(Text(line.label), *styled)
    notes = dict.fromkeys(row.evaluation.note for row in rows)
    if any("±" in cell for section in sections for line in section.lines for cell in line.cells):
        notes[_PLUS_MINUS] = None
    if caption := "\n".join(filter(None, [table.note, *notes])):
        out.caption = Text(caption)
    return out


# As JSON.


def evaluation_values(table: Table) -> dict[str, Any]:
    """Everything that was measured, as plain values: what the files of the runs have, and more.

    Each model has its evaluation, and beside it the perplexity over the source's and the
    differences from the source's loss in nats, with intervals and the p of both tests.
    """
    return {
        "domains": table.domains,
        "common_domains": table.common,
        "note": table.note,
        "models": [_model_values(table, row) for row in table.rows],
    }


def _model_values(table: Table, row: Row) -> dict[str, Any]:
    each, average = differences(table, row)
    factors = dict(zip(table.columns, table.times_source(row), strict=True))
    return record_fields(row.evaluation) | {
        "label": row.model,
        "run": row.run,
        "file": str(row.file),
        "times_source": factors if row.times_source else {},
        "difference_from_source": {name: vars(found) for name, found in each.items()},
        "average_difference_from_source": None if average is None else vars(average),
    }
