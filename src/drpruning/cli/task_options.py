"""Options of the commands that run tasks of lm-eval."""

from pathlib import Path
from typing import Annotated

import typer

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
