"""The table of results: source, pruned and recovered models with their perplexities."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drpruning.report.comparison import ValidationData, common_ground
from drpruning.report.formats import format_perplexity
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.records import Evaluation, ParameterCounts, RunRecord

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_MEASURED = "perplexity on validation data"
_GAP = 2
"""Columns of text between two columns of a table."""
_LABEL = 20
"""Characters of a model's name that have a line of their own, at most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the table.

    Attributes:
        model: What to call it; no two rows of a table have the same.
        run: Label of the run whose folder it was read from.
        file: Its evaluation.
        recovered: Whether it is what a run ended with, so that it competes with other runs' ends.
        parameters: How large it is.
        perplexity: Per domain.
        average: exp of the mean loss over the table's common domains, NaN where one is not known.
        worst: The largest perplexity over these domains, likewise.
        data: What it was measured on.
        times_source: Domain -> perplexity over that of the run's source model, where both were
            measured on the same blocks; empty for the source itself.
        size_times_source: Its total, embedding and other parameters over the source's.
        evaluation: What was read from the file.
        source: The evaluation of the run's source model; None for the source itself.
    """

    model: str
    run: str
    file: Path
    recovered: bool
    parameters: ParameterCounts
    perplexity: Mapping[str, float]
    average: float
    worst: float
    data: ValidationData
    times_source: Mapping[str, float]
    size_times_source: tuple[float, float, float]
    evaluation: Evaluation
    source: Evaluation | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Models in rows; perplexity per domain and what sums it up in columns.

    Attributes:
        domains: Every domain that a model was measured on.
        summaries: Names of average and worst; empty where these cannot be compared.
        note: What a reader must know to compare the models; may be empty.
        rows: The models.
        common: The domains that average and worst are over.
    """

    domains: list[str]
    common: list[str]
    summaries: list[str]
    note: str
    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """What :meth:`values` and :meth:`best` hold: the domains, then the summaries."""
        return [*self.domains, *self.summaries]

    def values(self, row: Row) -> list[float]:
        """The row's perplexities, one for each column; NaN where not measured."""
        summaries = [row.average, row.worst] if self.summaries else []
        return [*(row.perplexity.get(d, math.nan) for d in self.domains), *summaries]

    def times_source(self, row: Row) -> list[float]:
        """The row's perplexities over its source's, one for each column; NaN where not known.

        Of the summaries: the factor between the two averages, and the largest factor.
        """
        factors = row.times_source
        values = [factors.get(name, math.nan) for name in self.domains]
        common = [factors.get(name, math.nan) for name in self.common]
        if not self.summaries:
            return values
        known = bool(common) and not any(map(math.isnan, common))
        average = math.exp(sum(map(math.log, common)) / len(common)) if known else math.nan
        return [*values, average, max(common) if known else math.nan]

    def best(self) -> list[float]:
        """The lowest value of each column of :meth:`values` among recovered models.

        NaN where there are not two of them to compare.
        """
        competing = [self.values(row) for row in self.rows if row.recovered and self.summaries]
        columns = zip(*competing, strict=True) if competing else [()] * len(self.columns)
        known = [[value for value in column if not math.isnan(value)] for column in columns]
        return [min(values) if len(values) > 1 else math.nan for values in known]


def results_table(runs: Sequence[RunRecord]) -> Table:
    """Collect the evaluations of all runs.

    A run's source or pruned model whose numbers are those of a model already in the table (several
    runs from one start) is not repeated. Models that would have the same name get their run's label
    beside it, or else the file of their evaluation. Average and worst are over the domains that all
    models have; where the models were measured on other validation data, there is neither and
    nothing is ranked.
    """
    rows: list[Row] = []
    for run in runs:
        for name, evaluation in run.evaluations.items():
            row = _row(run, name, evaluation)
            repeated = any(_same_model(row, other) for other in rows)
            if name not in {SOURCE, PRUNED} or not repeated:
                rows.append(row)
    rows = _with_distinct_names(rows)
    measured = {name for row in rows for name in row.perplexity}
    domains = [name for name in _domains(runs) if name in measured]
    common, differences = common_ground([row.data for row in rows])
    if differences:
        note = (
            "Neither averaged nor ranked: the validation data that the models were measured on "
            f"differ in {'; '.join(differences)}."
        )
        return Table(domains=domains, common=[], summaries=[], note=note, rows=rows)
    if len(common) == len(domains):
        summaries = ["average", "worst"]
        return Table(domains=domains, common=common, summaries=summaries, note="", rows=rows)
    return Table(
        domains=domains,
        common=common,
        summaries=["average, common domains", "worst, common domains"],
        note=f"Domains common to all models: {', '.join(common)}.",
        rows=[_summed_up(row, common) for row in rows],
    )


def _with_distinct_names(rows: Sequence[Row]) -> list[Row]:
    names = [row.model for row in rows]
    for places in ([row.run for row in rows], [row.file for row in rows]):
        times = Counter(names)
        names = [
            f"{row.model} ({place})" if times[name] > 1 else name
            for row, name, place in zip(rows, names, places, strict=True)
        ]
    return [replace(row, model=name) for row, name in zip(rows, names, strict=True)]


def _domains(runs: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.domains))


def _row(run: RunRecord, name: str, evaluation: Evaluation) -> Row:
    worst = evaluation.worst_domain
    return Row(
        model=evaluation.label,
        run=run.label,
        file=RunFolder(run.folder).evaluation(name),
        recovered=name == MODEL,
        parameters=evaluation.parameters,
        perplexity=evaluation.perplexity,
        average=evaluation.average_perplexity,
        worst=math.nan if worst is None else evaluation.perplexity[worst],
        data=ValidationData(
            domains=list(evaluation.perplexity),
            blocks=evaluation.blocks,
            sequence_length=evaluation.sequence_length,
            tokenizer=run.tokenizer,
            digests=evaluation.validation,
        ),
        times_source={} if name == SOURCE else _times_source(evaluation, run.evaluations),
        size_times_source=_size_times_source(evaluation, run.evaluations.get(SOURCE)),
        evaluation=evaluation,
        source=None if name == SOURCE else run.evaluations.get(SOURCE),
    )


def _size_times_source(
    evaluation: Evaluation, source: Evaluation | None
) -> tuple[float, float, float]:
    if source is None:
        return math.nan, math.nan, math.nan
    own, whole = evaluation.parameters, source.parameters
    total, embedding, other = (
        part / of if of else math.nan
        for part, of in (
            (own.total, whole.total),
            (own.embedding, whole.embedding),
            (own.other, whole.other),
        )
    )
    return total, embedding, other


def _times_source(evaluation: Evaluation, found: Mapping[str, Evaluation]) -> dict[str, float]:
    source = found.get(SOURCE)
    if source is None or source.sequence_length != evaluation.sequence_length:
        return {}
    same = {
        name: value
        for name, value in evaluation.perplexity.items()
        if source.validation.get(name) == evaluation.validation.get(name)
        and source.blocks.get(name) == evaluation.blocks.get(name)
    }
    return times_source(same, source.perplexity)


def times_source(model: Mapping[str, float], source: Mapping[str, float]) -> dict[str, float]:
    """By what factor the perplexity of each domain is larger than the source's, where known."""
    factors = {name: value / source[name] for name, value in model.items() if source.get(name)}
    return {name: factor for name, factor in factors.items() if 0 < factor < math.inf}


def _summed_up(row: Row, domains: Sequence[str]) -> Row:
    """The same model with average and worst over these domains."""
    values = [row.perplexity[name] for name in domains]
    if not all(math.isfinite(value) and value > 0 for value in values):
        return replace(row, average=math.nan, worst=math.nan)
    mean = sum(map(math.log, values)) / len(values)
    return replace(row, average=math.exp(mean), worst=max(values))


def _same_model(one: Row, other: Row) -> bool:
    return (one.parameters, one.perplexity) == (other.parameters, other.perplexity)


def fitting_models(table: Table, width: int) -> list[slice]:
    """Split the models of a table into parts that fit into this many columns of text.

    No number is broken; of a model's name, words beyond `_LABEL` characters are.
    """
    texts = [format_perplexity(value) for row in table.rows for value in table.values(row)]
    texts += [f"{row.parameters.total:,}" for row in table.rows]
    texts += [word[:_LABEL] for row in table.rows for word in row.model.split()]
    names = [_MEASURED, *(f"  {name}" for name in table.columns)]
    left = width - max(map(len, names))
    count = max(1, left // (max(map(len, texts), default=0) + _GAP))
    return [slice(first, first + count) for first in range(0, max(1, len(table.rows)), count)]


def render_table_text(table: Table, models: slice = slice(None)) -> "RichTable":
    """Lay the table out for a terminal: models in columns, so that many domains fit.

    The best recovered model of each line is bold where there are several.

    Args:
        table: What `results_table` gives.
        models: The part of its models to show; see `fitting_models`.

    Returns:
        A table to be printed with ``rich.console.Console().print``.
    """
    from rich.text import Text

    from drpruning.common.console import make_table

    rows = table.rows[models]
    out = make_table("", *(Text(row.model) for row in rows))
    for label, name in (
        ("parameters", "total"),
        ("  embedding", "embedding"),
        ("  other", "other"),
    ):
        out.add_row(label, *(f"{getattr(row.parameters, name):,}" for row in rows))
    out.add_section()
    out.add_row(_MEASURED)
    best = table.best()
    values = [table.values(row) for row in rows]
    for index, name in enumerate(table.columns):
        if index == len(table.domains):
            out.add_section()
        cells = [
            Text(
                format_perplexity(column[index]),
                style="bold" if row.recovered and column[index] == best[index] else "",
            )
            for row, column in zip(rows, values, strict=True)
        ]
        out.add_row(Text(f"  {name}"), *cells)
    if table.note:
        out.caption = Text(table.note)
    return out
