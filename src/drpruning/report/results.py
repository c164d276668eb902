"""The table of results as the page shows it: perplexities, and how far they are from the source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpruning.report.formats import UNKNOWN, decimals, format_perplexity, loss_text, signed
from drpruning.report.table import Row, Table
from drpruning.runs.records import RunRecord


@dataclass(frozen=True, kw_only=True)
class ResultCell:
    """One number of a table.

    Attributes:
        ratio: As perplexity or factor; or in its only unit.
        nats: The same as a loss; empty where there is only one unit.
        is_best: Whether it is the best of those that it is compared with.
        note: In small print beside it.
    """

    ratio: str
    nats: str = ""
    is_best: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ResultColumn:
    """One model, or how far it is from its source.

    Attributes:
        head: What the column shows.
        is_times: Whether it shows factors over the source.
        cells: One for each line of the table.
        parameters: Total, embedding and other.
    """

    head: str
    is_times: bool
    cells: list[ResultCell]
    parameters: list[str]


def result_columns(table: Table) -> list[ResultColumn]:
    """A column for each model; after a single result, one with its distance from the source."""
    results = compared_rows(table)
    columns = []
    for row in table.rows:
        columns.append(_model(table, row))
        if results == [row]:
            columns.append(_times(table, row, "times the source", []))
    return columns


def times_columns(table: Table) -> list[ResultColumn]:
    """For several results, how far each is from its source; empty where they are not compared."""
    results = compared_rows(table)
    if len(results) < 2 or not table.summaries:
        return []
    lines = zip(*(table.times_source(row) for row in results), strict=True)
    least = [min((v for v in line if not math.isnan(v)), default=math.nan) for line in lines]
    return [_times(table, row, row.model, least) for row in results]


def compared_rows(table: Table) -> list[Row]:
    """The models that runs ended with, and the pruned ones where no run has such a model."""
    recovered = any(row.recovered for row in table.rows)
    return [row for row in table.rows if row.times_source and (row.recovered or not recovered)]


def _model(table: Table, row: Row) -> ResultColumn:
    cells = [
        ResultCell(
            ratio=format_perplexity(value),
            nats=loss_text(math.log(value)) if 0 < value < math.inf else UNKNOWN,
            is_best=row.recovered and value == best,
        )
        for value, best in zip(table.values(row), table.best(), strict=True)
    ]
    size = row.parameters
    counts = [f"{count:,}" for count in (size.total, size.embedding, size.other)]
    return ResultColumn(head=row.model, is_times=False, cells=cells, parameters=counts)


def _times(table: Table, row: Row, head: str, least: list[float]) -> ResultColumn:
    factors = table.times_source(row)
    return ResultColumn(
        head=head,
        is_times=True,
        cells=[
            ResultCell(
                ratio=UNKNOWN if math.isnan(value) else f"{decimals(value, 2)}×",
                nats=UNKNOWN if math.isnan(value) else signed(math.log(value)),
                is_best=bool(least) and value == least[index],
            )
            for index, value in enumerate(factors)
        ],
        parameters=[
            "" if math.isnan(share) else f"{decimals(share, 2)}×" for share in row.size_times_source
        ],
    )


def measured_on(runs: Sequence[RunRecord]) -> str:
    """The size of the validation data behind the table of results."""
    evaluations = [evaluation for run in runs for evaluation in run.evaluations.values()]
    blocks = [
        int(count) for e in evaluations for count in e.blocks.values() if math.isfinite(count)
    ]
    lengths = sorted({evaluation.sequence_length for evaluation in evaluations})
    if not blocks:
        return ""
    few, many = min(blocks), max(blocks)
    number = f"{many:,}" if few == many else f"{few:,} to {many:,}"
    tokens = " or ".join(f"{length:,}" for length in lengths)
    return f"Measured on {number} blocks of {tokens} tokens per domain."
