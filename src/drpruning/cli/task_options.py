"""Options of the commands that run tasks of lm-eval."""

from pathlib import Path
from typing import Annotated

import typer

from drpruning.common.errors import BadInput

Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="TASK,...",
        help="Also measure on tasks of lm-eval: NAME, NAME@EXAMPLES, or a group: paper-15, "
        "paper-multilingual.",
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Documents of each task, the first ones; default: all.")
]
TaskPath = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Your own tasks, as YAML files of lm-eval."),
]
ScoresFolder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FOLDER",
        help="Where the scores on tasks of models from elsewhere are kept; default: in the run "
        "that --data names. Those of a run's models are in its folder.",
    ),
]


def refuse_without_tasks(limit: int | None, task_path: Path | None, output: Path | None) -> None:
    """Refuse options that say something of tasks where none are named.

    Raises:
        BadInput: One is given.
    """
    options = {"--limit": limit, "--task-path": task_path, "--output": output}
    for option, value in options.items():
        if value is not None:
            raise BadInput(f"{option} {value}: is about tasks; name some with --tasks")
