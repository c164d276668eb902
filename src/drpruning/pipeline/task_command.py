"""`drprune evaluate --tasks` and `drprune compare`: which models are run on which tasks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.common.files import check_folder
from drpruning.evaluation.prompts import Prompts, load_prompts
from drpruning.evaluation.significance import (
    Bootstrap,
    Significance,
    compare_pairs,
    paired_bootstrap,
)
from drpruning.evaluation.task_groups import TaskSpec, parse_tasks
from drpruning.models.inspect import check_model
from drpruning.pipeline.devices import start_accelerator
from drpruning.pipeline.evaluation import _model as named_model
from drpruning.pipeline.run import Run
from drpruning.pipeline.task_evaluation import (
    OPTION,
    TaskModel,
    TaskPlan,
    complain_of_failures,
    measure_tasks,
    run_models,
    show_tasks,
)
from drpruning.recipe import Training
from drpruning.report.card_results import write_card_results
from drpruning.report.task_table import ComparedTask, comparison_table
from drpruning.runs.folder import RunFolder
from drpruning.runs.task_results import TaskResult

_FIELD = "MODEL"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What the command line says of tasks.

    Attributes:
        tasks: Names and groups, with commas between them.
        limit: Documents of each task at most.
        task_path: A folder of the user's own tasks.
        data: The run beside which the scores of models from elsewhere are kept.
        output: In place of it, a folder for these scores.
    """

    tasks: str
    limit: int | None = None
    task_path: Path | None = None
    data: Path | None = None
    output: Path | None = None

    @property
    def specs(self) -> list[TaskSpec]:
        """The tasks by name.

        Raises:
            BadInput: One is not written as a task.
        """
        return parse_tasks([self.tasks], OPTION)

    def plan(self, prompts: Prompts | None = None) -> TaskPlan:
        """The tasks, found in lm-eval.

        Args:
            prompts: Templates under which each is run; None: the tasks' own.

        Raises:
            BadInput: lm-eval is not installed, or has no such task.
        """
        plan = TaskPlan(
            specs=self.specs,
            limit=self.limit,
            task_path=self.task_path,
            prompts=prompts,
        )
        plan.catalogue  # noqa: B018 - finds the tasks
        return plan


def evaluate_tasks(targets: Sequence[Path], options: TaskOptions) -> None:
    """Measure the models of runs and models from elsewhere on tasks, and print one table.

    Args:
        targets: Run folders, model folders, and names on the Hub.
        options: The tasks, and places.

    Raises:
        BadInput: A target, a task or a folder cannot be used.
        EvaluationIncomplete: A task could not be run; the others were.
    """
    options.specs  # noqa: B018 - checks how they are written
    models = _models(targets, options, last_only=False)
    plan = options.plan()
    reporter = _reporter()
    accelerator = start_accelerator(reporter, models[0].training)
    outcome = show_tasks(models, plan, accelerator, reporter)
    if accelerator.is_main_process:
        for run in (target for target in targets if RunFolder(target).has_recipe):
            for warning in write_card_results(run):
                reporter.warn(warning)
    complain_of_failures(outcome.failures)


def compare_models(targets: Sequence[Path], options: TaskOptions, prompts: Path | None) -> None:
    """Say whether models differ on the same tasks under several prompts (Appendix B.3).

    Args:
        targets: Two models or runs, or several pairs of them, which are pooled too; a run stands
            for the model that it ended with.
        options: The tasks, and places.
        prompts: A file with more templates.

    Raises:
        BadInput: They are no pairs, a task has no templates, or as `evaluate_tasks`.
        EvaluationIncomplete: A task could not be run; the others are compared.
    """
    if len(targets) % 2:
        raise BadInput("compare: name two models or runs, or several pairs of them")
    if len({target.resolve() for target in targets}) < len(targets):
        raise BadInput("compare: a model is named twice; name different ones")
    specs, templates = options.specs, load_prompts(prompts)
    if missing := [spec.name for spec in specs if spec.name not in templates.tasks]:
        raise BadInput(
            f"{OPTION}: there are no prompts for {', '.join(missing)}, only for "
            f"{', '.join(templates.tasks)}; give some with --prompts FILE"
        )
    models = _models(targets, options, last_only=True)
    plan = options.plan(templates)
    reporter = _reporter()
    outcome = measure_tasks(models, plan, start_accelerator(reporter, models[0].training), reporter)
    pooled: list[ComparedTask] = []
    titles = [spec.title for spec in specs if spec.title not in outcome.failures]
    for first, second in zip(models[::2], models[1::2], strict=True):
        found = [outcome.results.get(model.label, {}) for model in (first, second)]
        if not all(found):
            continue
        tasks = [_compared(title, found[0], found[1], plan) for title in titles]
        reporter.console.print(comparison_table(first.label, second.label, tasks))
        for line in significance_lines(
            tasks, _document_bootstrap(titles, found[0], found[1], plan)
        ):
            reporter.line(line)
        pooled += tasks
    if len(models) > 2 and pooled:
        reporter.line("All pairs together:")
        for line in significance_lines(pooled, None):
            reporter.line(line)
    complain_of_failures(outcome.failures)


def significance_lines(tasks: Sequence[ComparedTask], documents: Bootstrap | None) -> list[str]:
    """What the tests say, for people; scores are in percent.

    Args:
        tasks: What both models scored, under each prompt.
        documents: The bootstrap over the documents of each task, where every task has them.
    """
    first = [score for task in tasks for score in task.first]
    second = [score for task in tasks for score in task.second]
    if not first:
        return []
    found = compare_pairs(first, second)
    lines = [_pairs_line(found)]
    if documents is not None:
        lines.append(f"bootstrap over documents: {_bootstrap_text(documents)}")
    return lines


def _pairs_line(found: Significance) -> str:
    t_test = "no t-test, as all differences are equal"
    if not np.isnan(found.t_test.t):
        t_test = f"paired t-test t {found.t_test.t:.2f}, p {found.t_test.p:.2g}"
    return (
        f"difference {100 * found.difference:+.2f} points over {found.pairs} pairs of task and "
        f"prompt: {t_test}; bootstrap over pairs: {_bootstrap_text(found.bootstrap)}"
    )


def _bootstrap_text(found: Bootstrap) -> str:
    return f"95% from {100 * found.low:+.2f} to {100 * found.high:+.2f}, p {found.p:.2g}"


def _compared(
    title: str, first: Mapping[str, TaskResult], second: Mapping[str, TaskResult], plan: TaskPlan
) -> ComparedTask:
    names = [item.title for item in plan.items if item.spec.title == title]
    scores = [[found[name].result.score for name in names] for found in (first, second)]
    return ComparedTask(title=title, first=scores[0], second=scores[1])


def _document_bootstrap(
    titles: Sequence[str],
    first: Mapping[str, TaskResult],
    second: Mapping[str, TaskResult],
    plan: TaskPlan,
) -> Bootstrap | None:
    """Resample the documents of each task, all its prompts together; None without their scores."""
    groups = []
    for title in titles:
        names = [item.title for item in plan.items if item.spec.title == title]
        rows = [
            np.subtract(second[name].result.document_scores, first[name].result.document_scores)
            for name in names
        ]
        if not all(len(row) for row in rows):
            return None
        groups.append(np.mean(rows, axis=0))
    return paired_bootstrap(groups) if groups else None


def _models(targets: Sequence[Path], options: TaskOptions, *, last_only: bool) -> list[TaskModel]:
    """The models of runs, and models from elsewhere.

    Args:
        targets: What was named.
        options: Places of scores.
        last_only: Whether a run stands for the model that it ended with.
    """
    targets = list({target.resolve(): target for target in targets}.values())
    runs = [target for target in targets if RunFolder(target).has_recipe]
    found: list[TaskModel] = []
    for target in targets:
        if target not in runs:
            found.append(_from_elsewhere(target, options))
            continue
        run = Run.open(target)
        several = last_only or len(targets) > 1
        models = run_models(run.recipe, run.models(), run.files, f"{target} " if several else "")
        found += models[-1:] if last_only else models
    return found


def _from_elsewhere(target: Path, options: TaskOptions) -> TaskModel:
    named = named_model(target)
    training = Training()
    if options.data is not None:
        home = Run.open(options.data)
        folder, training = home.files.task_results, home.recipe.training
    elif options.output is not None:
        check_folder(options.output, "--output")
        folder = options.output
    else:
        raise BadInput(
            f"{named.label}: name a folder for its scores with --output FOLDER, or with --data RUN "
            "the run beside whose models it is measured"
        )
    check_model(named.path, _FIELD)
    return TaskModel(
        label=named.label,
        path=named.path,
        field=_FIELD,
        tokenizer=named.path,
        folder=folder,
        documents=None,
        training=training,
    )


def _reporter() -> Reporter:
    return Reporter(silent=os.environ.get("RANK", "0") != "0")
