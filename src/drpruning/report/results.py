"""The table of results as the page shows it: perplexities, and how far they are from the source."""

import math
from dataclasses import dataclass

from drpruning.report.formats import UNKNOWN, decimals, format_perplexity, loss_text, signed
from drpruning.report.table import Row, Table


@dataclass(frozen=True, kw_only=True)
class ResultCell:
    """One number in both units, and whether it is the best of its line."""

    ratio: str
    nats: str
    is_best: bool = False


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
    """A column for each model, and one after each result with its distance from the source."""
    columns = []
    recovered = any(row.recovered for row in table.rows)
    results = [row for row in table.rows if row.times_source and (row.recovered or not recovered)]
    for row in table.rows:
        columns.append(_model(table, row))
        if row in results:
            head = "times the source" if len(results) == 1 else f"{row.model}, times the source"
            columns.append(_times(table, row, head))
    return columns


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


def _times(table: Table, row: Row, head: str) -> ResultColumn:
    factors = table.times_source(row)
    return ResultColumn(
        head=head,
        is_times=True,
        cells=[
            ResultCell(
                ratio=UNKNOWN if math.isnan(value) else f"{decimals(value, 2)}×",
                nats=UNKNOWN if math.isnan(value) else signed(math.log(value)),
            )
            for value in factors
        ],
        parameters=[
            "" if math.isnan(share) else f"{decimals(share, 2)}×" for share in row.size_times_source
        ],
    )
