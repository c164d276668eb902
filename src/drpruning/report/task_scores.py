"""Scores on tasks as the page and the model cards show them, in the form of the paper's Table 3."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from drpruning.report.folded import FoldedTable, Group, Labelled, Row
from drpruning.report.formats import UNKNOWN
from drpruning.report.results import ResultCell
from drpruning.runs.folder import MODEL, PRUNED, SOURCE
from drpruning.runs.records import RunRecord
from drpruning.runs.task_results import TaskResult, TaskScore

_ORDER = (SOURCE, PRUNED, MODEL, "")


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """A model that was measured on tasks.

    Attributes:
        name: What to call it.
        stage: `source`, `pruned` or `model`; empty for a model from elsewhere.
        scores: Name of the task -> score.
    """

    name: str
    stage: str
    scores: Mapping[str, TaskScore]


def scored_models(runs: Labelled) -> list[ScoredModel]:
    """The models of runs that were measured on tasks: sources first, then pruned, then recovered.

    A model that several runs have in common is there once. Of scores under the same name the latest
    counts.
    """
    found: dict[str, ScoredModel] = {}
    for label, run in runs:
        for result in run.tasks:
            if result.prompt is not None:  # one of several prompts, for a test of significance
                continue
            stage = _stage(run, result)
            name = run.evaluations[stage].label if stage in run.evaluations else result.model
            if len(runs) > 1 and stage in {PRUNED, MODEL}:
                name = f"{name} ({label})"
            key = f"{result.key.fingerprint} {'' if stage else result.model}"
            known = found.get(key) or ScoredModel(name=name, stage=stage, scores={})
            found[key] = replace(known, scores={**known.scores, _title(result): result.result})
    return sorted(found.values(), key=lambda model: _ORDER.index(model.stage))


def _stage(run: RunRecord, result: TaskResult) -> str:
    """Which of the run's models was measured."""
    for name in _ORDER[:-1]:
        evaluation = run.evaluations.get(name)
        if evaluation is not None and evaluation.fingerprint == result.key.fingerprint:
            return name
    # Without a fingerprint of the evaluation, its label says so: RUN NAME, or NAME alone.
    last = result.model.rpartition(" ")[2]
    return last if last in _ORDER else ""


def _title(result: TaskResult) -> str:
    shots, limit = result.result.shots, result.key.limit
    parts = [
        f"{shots} shot{'s' if shots > 1 else ''}" if shots else "",
        f"first {limit:,} documents" if limit else "",
    ]
    return ", ".join([result.key.task, *filter(None, parts)])


def tasks_table(runs: Labelled) -> FoldedTable | None:
    """Tasks by models, with the average; None where no model was measured on any."""
    models = scored_models(runs)
    if not models:
        return None
    rows, sums = task_rows(models)
    return FoldedTable(
        ident="tasks-table",
        title="Tasks",
        about=f"scores on {len({title for model in models for title in model.scores})} tasks",
        head=["Task", *(model.name for model in models)],
        groups=[Group(title="", rows=rows, sums=sums)],
        caption="Scores from 0 to 1 in percent with their standard error, others as they are. "
        "Average: of the percentages that all models have. In the form of the paper's Table 3.",
    )


def task_rows(models: Sequence[ScoredModel]) -> tuple[list[Row], list[Row]]:
    """A row for each task, and one for the average of the percentages that all models have."""
    titles = list(dict.fromkeys(title for model in models for title in model.scores))
    rows = [
        (title, _cells(models, [model.scores.get(title) for model in models])) for title in titles
    ]
    sums: list[Row] = []
    common = [
        title
        for title in titles
        if all((score := m.scores.get(title)) and score.is_proportion for m in models)
    ]
    if len(common) > 1:
        means = [sum(m.scores[title].score for title in common) / len(common) for m in models]
        best = _best(models, means)
        cells = [ResultCell(ratio=f"{100 * mean:.1f}", is_best=mean == best) for mean in means]
        sums.append((f"average of {len(common)}", cells))
    return rows, sums


def _cells(models: Sequence[ScoredModel], scores: Sequence[TaskScore | None]) -> list[ResultCell]:
    values = [
        math.nan if score is None else score.score if score.higher_is_better else -score.score
        for score in scores
    ]
    best = _best(models, values)
    return [
        _cell(score, is_best=value == best) for score, value in zip(scores, values, strict=True)
    ]


def _best(models: Sequence[ScoredModel], values: Sequence[float]) -> float:
    """The best of the models that runs ended with; NaN where there are not two of them."""
    ends = [value for model, value in zip(models, values, strict=True) if model.stage == MODEL]
    known = [value for value in ends if not math.isnan(value)]
    return max(known) if len(known) > 1 else math.nan


def _cell(score: TaskScore | None, *, is_best: bool) -> ResultCell:
    if score is None:
        return ResultCell(ratio=UNKNOWN)
    factor, places = (100, 1) if score.is_proportion else (1, 3)
    error = score.standard_error
    return ResultCell(
        ratio=f"{factor * score.score:.{places}f}",
        is_best=is_best,
        note="" if math.isnan(error) else f"±{factor * error:.{places}f}",
    )
