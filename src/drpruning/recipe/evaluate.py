"""The section `evaluate`: tasks that the models of a run are measured on at its end."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from drpruning.recipe.paths import PathText
from drpruning.recipe.section import Count, Section

TASK = re.compile(r"[^@,\s]+(@[0-9]{1,3})?")
"""How a task or a group of tasks is written: its name, for a task with `@` and its examples."""


def _task(text: str) -> str:
    if not TASK.fullmatch(text):
        raise ValueError(
            "write the name of a task, with @N for N examples in the prompt, such as hellaswag@10"
        )
    return text


class Evaluate(Section):
    """What the stage `evaluate` measures beside perplexity."""

    tasks: list[Annotated[str, AfterValidator(_task), Field(max_length=200)]] | None = None
    """Tasks of lm-eval (NAME or NAME@EXAMPLES), paper-15, paper-multilingual; absent: none."""
    limit: Count | None = None
    """Documents of each task, the first ones; absent: all."""
    task_path: PathText | None = None
    """Folder of your own tasks, as YAML files of lm-eval; absent: none."""
