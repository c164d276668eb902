"""Tables that fold: intervals and bits per byte, and several runs as the paper compares them.

Tables 1 and 7 of Deng et al. (arXiv 2411.14055) compare policies by the perplexity after pruning
and after recovery, Table 11 compares what was pruned.
"""

import math
from collections.abc import Mapping, Sequence

from drpruning.pruning.shapes import PRUNABLE_LABELS
from drpruning.pruning.similarity import compare_plans
from drpruning.report.folded import FoldedTable, Group, Labelled, Row
from drpruning.report.formats import UNKNOWN, decimals, exp_text, format_perplexity, loss_text
from drpruning.report.results import ResultCell
from drpruning.report.table import Table
from drpruning.report.task_scores import tasks_table
from drpruning.report.verdict import short
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.records import Evaluation, RunRecord, section

_KINDS = {
    "layer": "layers",
    "hidden": "hidden dimensions",
    "group": "key/value heads",
    "head": "query heads",
    "intermediate": "intermediate dimensions",
}
"""Granularity of masks -> head of its column."""
_ABOUT_INTERVALS = (
    "Interval: 95%, from bootstrap samples of the validation blocks. Bits per byte of the text "
    "that the tokens stand for can be compared between tokenizers, perplexity cannot."
)
_STAGES = {SOURCE: "Source", PRUNED: "After pruning", MODEL: "After recovery"}


def extra_tables(runs: Labelled, table: Table) -> list[FoldedTable]:
    """All such tables that there is something to show in.

    Args:
        runs: Those of the page.
        table: Their results.
    """
    found = [tasks_table(runs), measured_table([run for _, run in runs], table)]
    if len(runs) > 1:
        found += [recovery_table(runs, table), domain_table(runs, table), similarity_table(runs)]
    return [folded for folded in found if folded is not None]


def measured_table(runs: Sequence[RunRecord], table: Table) -> FoldedTable | None:
    """Perplexities with their intervals and bits per byte of each model; None without either."""
    names = {row.file: row.model for row in table.rows}
    measured = [
        (model, evaluation)
        for run in runs
        for name, evaluation in run.evaluations.items()
        if (model := names.get(RunFolder(run.folder).evaluation(name)))
        and (evaluation.interval or evaluation.bits_per_byte)
    ]
    if not measured:
        return None
    notes = dict.fromkeys(evaluation.note for _, evaluation in measured if evaluation.note)
    return FoldedTable(
        ident="measured-table",
        title="Intervals and bits per byte",
        about="how sure each perplexity is",
        head=["Domain", "perplexity", "95% interval", "bits per byte"],
        groups=[_measured(model, evaluation, table) for model, evaluation in measured],
        caption=" ".join([_ABOUT_INTERVALS, *notes]),
    )


def _measured(model: str, evaluation: Evaluation, table: Table) -> Group:
    rows: list[Row] = []
    sums: list[Row] = []
    bits: list[float] = []
    for name in table.domains:
        if name not in {*evaluation.loss, *evaluation.bits_per_byte}:
            continue
        perplexity = _cell(evaluation.perplexity.get(name, math.nan))
        low, high = evaluation.interval.get(name, (math.nan, math.nan))
        bits.append(evaluation.bits_per_byte.get(name, math.nan))
        rows.append((name, [perplexity, _range(low, high), _bits(bits[-1])]))
    if len(rows) > 1:
        average = _cell(evaluation.average_perplexity)
        low, high = evaluation.average_interval or (math.nan, math.nan)
        sums = [("average", [average, _range(low, high), _bits(_mean(bits))])]
    return Group(title=model, rows=rows, sums=sums)


def recovery_table(runs: Labelled, table: Table) -> FoldedTable | None:
    """Average perplexity after pruning and after recovery of each policy, by shape (Table 1)."""
    if not table.common:
        return None
    groups: dict[str, list[Row]] = {}
    for label, run in runs:
        stages = [_average(run.evaluations.get(name), table.common) for name in _STAGES]
        if all(map(math.isnan, stages[1:])):
            continue
        policy = str(section(run.recipe, "scheduling").get("policy") or UNKNOWN)
        row = (label, [ResultCell(ratio=policy), *map(_cell, stages)])
        groups.setdefault(_shape(run), []).append(row)
    if not groups:
        return None
    return FoldedTable(
        ident="recovery-table",
        title="After pruning and after recovery",
        about="average perplexity by shape and policy",
        head=["Run", "policy", *(title.lower() for title in _STAGES.values())],
        groups=[Group(title=shape, rows=rows) for shape, rows in groups.items()],
        caption="Average: exp of the mean loss over the domains common to all models. In the form "
        "of the paper's Table 1.",
    )


def _shape(run: RunRecord) -> str:
    """What the run made, so that runs to the same shape stand together."""
    small = run.evaluations.get(MODEL) or run.evaluations.get(PRUNED)
    size = f"{short(small.parameters.total)} parameters" if small else ""
    if run.plan is None:
        return size
    target = run.plan.target
    parts = [
        f"{label} {getattr(target, name):,}"
        if label.endswith("size")
        else f"{getattr(target, name):,} {label}"
        for name, label in PRUNABLE_LABELS.items()
    ]
    return f"{size}: {', '.join(parts)}"


def domain_table(runs: Labelled, table: Table) -> FoldedTable | None:
    """Perplexity of each domain by run, at each stage (Table 7)."""
    groups = []
    for name, title in _STAGES.items():
        values: dict[str, list[float]] = {}
        for label, run in runs:
            if (evaluation := run.evaluations.get(name)) is None:
                continue
            row = [evaluation.perplexity.get(domain, math.nan) for domain in table.domains]
            if table.common:
                row.append(_average(evaluation, table.common))
            if name == MODEL or row not in values.values():
                values[label] = row
        # Of models that were measured on different data none is the best.
        ranked = name != SOURCE and bool(table.common) and len(values) > 1
        if name == SOURCE and len(values) == 1:
            values = {"source": next(iter(values.values()))}
        if values:
            groups.append(Group(title=title, rows=_ranked(values) if ranked else _plain(values)))
    if not groups:
        return None
    summaries = table.summaries[:1] if table.common else []
    return FoldedTable(
        ident="domain-table",
        title="Each domain by run",
        about="perplexity of the source, after pruning and after recovery",
        head=["Run", *table.domains, *summaries],
        groups=groups,
        caption="Bold: the least of a column at this stage. A model that several runs have in "
        "common stands in the first alone. In the form of the paper's Table 7.",
    )


def _plain(values: Mapping[str, Sequence[float]]) -> list[Row]:
    return [(label, [_cell(value) for value in row]) for label, row in values.items()]


def _ranked(values: Mapping[str, Sequence[float]]) -> list[Row]:
    """The same with the least of each column marked."""
    columns = zip(*values.values(), strict=True)
    least = [min((v for v in column if not math.isnan(v)), default=math.nan) for column in columns]
    return [
        (label, [_cell(v, is_best=v == best) for v, best in zip(row, least, strict=True)])
        for label, row in values.items()
    ]


def similarity_table(runs: Labelled) -> FoldedTable | None:
    """On which share of the source's parts each pair of runs decided alike (Table 11).

    Runs that cut another source than the first run with a plan are left out.
    """
    plans = {label: run.plan for label, run in runs if run.plan is not None}
    sources = [plan.source for plan in plans.values()]
    alike = {label: plan for label, plan in plans.items() if plan.source == sources[0]}
    if len(alike) < 2:
        return None
    pairs = compare_plans(alike)
    kinds = list(dict.fromkeys(kind for pair in pairs for kind in pair.similarity))
    one_chance = all(pair.chance == pairs[0].chance for pair in pairs)

    def cells(similarity: Mapping[str, float], chance: Mapping[str, float]) -> list[ResultCell]:
        return [
            ResultCell(
                ratio=_share(similarity.get(kind, math.nan)),
                note="" if one_chance else f"({_share(chance.get(kind, math.nan))})",
            )
            for kind in kinds
        ]

    rows = [(f"{p.first} and {p.second}", cells(p.similarity, p.chance)) for p in pairs]
    sums: list[Row] = []
    if len(pairs) > 1:
        similarity, chance = (
            {
                kind: _mean([getattr(pair, name).get(kind, math.nan) for pair in pairs])
                for kind in kinds
            }
            for name in ("similarity", "chance")
        )
        sums.append(("mean of the pairs", cells(similarity, chance)))
    if one_chance:
        sums.append(
            ("by chance", [ResultCell(ratio=_share(pairs[0].chance[kind])) for kind in kinds])
        )
    left_out = [label for label in plans if label not in alike]
    return FoldedTable(
        ident="similarity-table",
        title="What the runs prune alike",
        about="similarity of masks, pair by pair",
        head=["Runs", *(_KINDS.get(kind, kind) for kind in kinds)],
        groups=[Group(title="", rows=rows, sums=sums)],
        caption="Share of the source's parts that both runs keep or both remove, and what two "
        f"random plans of these shapes would have in common"
        f"{'' if one_chance else ' (in brackets)'}. In the form of the paper's Table 11."
        + (f" Of other sources: {', '.join(left_out)}." if left_out else ""),
    )


def _average(evaluation: Evaluation | None, domains: Sequence[str]) -> float:
    """Average perplexity over some domains; NaN where one of them is not known."""
    if evaluation is None:
        return math.nan
    values = [evaluation.perplexity.get(name, math.nan) for name in domains]
    if not all(0 < value < math.inf for value in values):
        return math.nan
    return math.exp(_mean([math.log(value) for value in values]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(perplexity: float, *, is_best: bool = False) -> ResultCell:
    known = 0 < perplexity < math.inf
    nats = loss_text(math.log(perplexity)) if known else UNKNOWN
    return ResultCell(ratio=format_perplexity(perplexity), nats=nats, is_best=is_best)


def _range(low: float, high: float) -> ResultCell:
    """An interval of losses."""
    if math.isnan(low) or math.isnan(high):
        return ResultCell(ratio=UNKNOWN)
    return ResultCell(
        ratio="–".join(map(exp_text, (low, high))), nats="–".join(map(loss_text, (low, high)))
    )


def _bits(value: float) -> ResultCell:
    return ResultCell(ratio=UNKNOWN if math.isnan(value) else decimals(value, 3))


def _share(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.1%}"
