"""`drprune compare`: whether models differ on the same tasks."""

from pathlib import Path
from typing import Annotated

import typer

from drpruning.cli.app import command
from drpruning.cli.task_options import Limit, ScoresFolder, TaskPath


@command(
    "drprune compare runs/a runs/b --tasks paper-15\n"
    "drprune compare small-a small-b large-a large-b --tasks paper-15 --output scores\n"
    "drprune compare runs/a runs/b --tasks mine --task-path tasks --prompts prompts.yaml"
)
def compare(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="FIRST SECOND...",
            help="Two run folders, model folders or names on the Hub, or several pairs, which are "
            "tested together too. A run stands for the model that it ended with.",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            metavar="TASK,...", help="Tasks of lm-eval: NAME, NAME@EXAMPLES, or paper-15."
        ),
    ],
    *,
    limit: Limit = None,
    task_path: TaskPath = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="More prompts, for tasks that the package has none for."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The run that keeps the scores of models from elsewhere."),
    ] = None,
    output: ScoresFolder = None,
) -> None:
    """Say whether two models differ on tasks, each under five prompts: t-test and bootstrap."""
    from drpruning.pipeline.targets import run_folders
    from drpruning.pipeline.task_command import TaskOptions, compare_models

    options = TaskOptions(tasks=tasks, limit=limit, task_path=task_path, data=data, output=output)
    compare_models(run_folders(targets), options, prompts)
