"""Scores of models on tasks as a table, and what tests say of the difference of two models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from drpruning.common.console import make_table
from drpruning.runs.task_results import TaskResult, TaskScore

_NOTHING = "-"


def score_text(score: TaskScore) -> str:
    """A proportion in percent, anything else as it is; with the standard error where known."""
    factor = 100 if score.is_proportion else 1
    places = 1 if score.is_proportion else 3
    text = f"{factor * score.score:.{places}f}"
    if np.isnan(score.standard_error):
        return text
    return f"{text} ±{factor * score.standard_error:.{places}f}"


def task_table(results: Mapping[str, Mapping[str, TaskResult]]) -> Table:
    """A line for each task and a column for each model, with the average of the proportions.

    Args:
        results: Label of the model -> title of the task -> result; some may be missing.
    """
    titles = list(dict.fromkeys(title for found in results.values() for title in found))
    table = make_table("task", "shots", "metric", *map(Text, results), left=(0, 2))
    for title in titles:
        found = [of_model.get(title) for of_model in results.values()]
        score = next(each.result for each in found if each is not None)
        scores = [_NOTHING if each is None else score_text(each.result) for each in found]
        name = title.partition("@")[0]
        table.add_row(Text(name), str(score.shots), Text(score.metric), *scores)
    common = averaged_tasks(results)
    if len(common) > 1:
        averages = [
            f"{100 * np.mean([found[title].result.score for title in common]):.1f}"
            for found in results.values()
        ]
        table.add_section()
        table.add_row(f"average of {len(common)}", "", "", *averages)
    return table


def averaged_tasks(results: Mapping[str, Mapping[str, TaskResult]]) -> list[str]:
    """The tasks that all models have a proportion for: other scores have no common unit."""
    every = list(results.values())
    return [
        title
        for title in (every[0] if every else {})
        if all(title in found and found[title].result.is_proportion for found in every)
    ]


@dataclass(frozen=True, kw_only=True)
class ComparedTask:
    """The scores of two models on a task, one for each prompt.

    Attributes:
        title: Of the task.
        first: Of the first model.
        second: Of the second, under the same prompts.
    """

    title: str
    first: Sequence[float]
    second: Sequence[float]


def comparison_table(first: str, second: str, tasks: Iterable[ComparedTask]) -> Table:
    """Means over the prompts and their difference, in percent.

    Args:
        first: Label of a model.
        second: Label of the other one.
        tasks: What they scored.
    """
    table = make_table("task", "prompts", Text(first), Text(second), "difference")
    for task in tasks:
        means = [100 * float(np.mean(scores)) for scores in (task.first, task.second)]
        table.add_row(
            Text(task.title),
            str(len(task.first)),
            *(f"{mean:.1f}" for mean in means),
            f"{means[1] - means[0]:+.1f}",
        )
    return table
