"""The table of results: source, pruned and recovered models with their perplexities."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from drpruning.runs.folder import MODEL
from drpruning.runs.records import Evaluation, RunRecord

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the table.

    Attributes:
        model: What to call it; no two rows of a table have the same.
        run: Label of the run whose folder it was read from.
        recovered: Whether it is what a run ended with, so that it competes with other runs' ends.
        parameters: Their number in all.
        embedding_parameters: In the input and output matrices.
        other_parameters: In the rest.
        perplexity: Per domain.
        average: exp of the mean loss over domains.
        worst: The largest perplexity over domains, NaN where one is not known.
        worst_domain: Where that is.
    """

    model: str
    run: str
    recovered: bool
    parameters: int
    embedding_parameters: int
    other_parameters: int
    perplexity: dict[str, float]
    average: float
    worst: float
    worst_domain: str | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Models in rows; perplexity per domain, average and worst in columns."""

    domains: list[str]
    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """What :meth:`values` and :meth:`best` hold: the domains, then average and worst."""
        return [*self.domains, "average", "worst"]

    def values(self, row: Row) -> list[float]:
        """The row's perplexities: one a domain (NaN where not measured), average, worst."""
        return [*(row.perplexity.get(d, math.nan) for d in self.domains), row.average, row.worst]

    def best(self) -> list[float]:
        """The lowest value of each column of :meth:`values` among recovered models.

        NaN throughout where there are not two of them to compare.
        """
        columns = [self.values(row) for row in self.rows if row.recovered]
        if len(columns) < 2:
            return [math.nan] * len(self.columns)
        return [
            min((value for value in column if not math.isnan(value)), default=math.nan)
            for column in zip(*columns, strict=True)
        ]


def results_table(runs: Sequence[RunRecord]) -> Table:
    """Collect the evaluations of all runs.

    A source or pruned model whose numbers are those of a model already in the table (several runs
    from one start) is not repeated. Models that would have the same name get their run's label
    beside it.
    """
    rows: list[Row] = []
    for run in runs:
        for name, evaluation in run.evaluations.items():
            row = _row(run.label, name, evaluation)
            if row.recovered or not any(_same_model(row, other) for other in rows):
                rows.append(row)
    times = Counter(row.model for row in rows)
    rows = [
        replace(row, model=f"{row.model} ({row.run})") if times[row.model] > 1 else row
        for row in rows
    ]
    domains = dict.fromkeys(name for run in runs for name in run.domains)
    measured = {name for row in rows for name in row.perplexity}
    return Table(domains=[name for name in domains if name in measured], rows=rows)


def _row(run: str, name: str, evaluation: Evaluation) -> Row:
    return Row(
        model=evaluation.label,
        run=run,
        recovered=name == MODEL,
        parameters=evaluation.parameters,
        embedding_parameters=evaluation.embedding_parameters,
        other_parameters=evaluation.other_parameters,
        perplexity=evaluation.perplexity,
        average=evaluation.average_perplexity,
        worst=evaluation.worst_perplexity,
        worst_domain=evaluation.worst_domain,
    )


def _same_model(one: Row, other: Row) -> bool:
    return (one.parameters, one.perplexity) == (other.parameters, other.perplexity)


def format_perplexity(value: float) -> str:
    """Four significant digits at most; an en dash where it was not measured."""
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}" if value >= 1e6 else f"{value:,.0f}"


def render_table_text(table: Table) -> "RichTable":
    """Lay the table out for a terminal: models in columns, so that many domains fit.

    The best recovered model of each line is bold where there are several.

    Returns:
        A table to be printed with ``rich.console.Console().print``.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    out = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("", overflow="fold")
    for row in table.rows:
        out.add_column(Text(row.model), justify="right", overflow="fold")
    for name, attribute in (
        ("parameters", "parameters"),
        ("  embedding", "embedding_parameters"),
        ("  other", "other_parameters"),
    ):
        out.add_row(name, *(f"{getattr(row, attribute):,}" for row in table.rows))
    out.add_section()
    best = table.best()
    values = [table.values(row) for row in table.rows]
    for index, name in enumerate(table.columns):
        if index == len(table.domains):
            out.add_section()
        cells = [
            Text(
                format_perplexity(column[index]),
                style="bold" if row.recovered and column[index] == best[index] else "",
            )
            for row, column in zip(table.rows, values, strict=True)
        ]
        out.add_row(Text(name), *cells)
    return out
