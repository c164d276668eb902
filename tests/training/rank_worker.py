"""Run by torchrun in a test: does the runs in a file one after the other, with what befalls them.

A job has `values` (a recipe) and perhaps `ends` (phase, step, rank, how): before that step every
rank leaves the run without saving anything (`leave`), or the one rank raises (`raise`), is killed
(`kill`) or does nothing any more (`hang`), which ends the whole program.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from drpruning.cli.app import run_and_exit
from drpruning.common.console import Task
from drpruning.pipeline.run import Run
from drpruning.recipe import parse_recipe
from drpruning.training.trainer import Trainer

REASON = "the disk of this rank is on fire"
plain_step, plain_evaluation = Trainer._train_step, Trainer._evaluate


class Left(Exception):  # noqa: N818
    """Stands for all ranks ending with nothing saved."""


def do(job: dict[str, Any]) -> None:
    """One job; every rank writes the ratios that it held to ratios-RANK.json in the run folder."""
    ratios: list[dict[str, float]] = []

    def evaluate(loop: Trainer, task: Task) -> None:
        plain_evaluation(loop, task)
        ratios.append(loop.ratio)

    def step(loop: Trainer) -> None:
        phase, at, rank, how = job.get("ends", (None,) * 4)
        if (loop.phase, loop.step) == (phase, at):
            if how == "leave":
                raise Left
            if loop.accelerator.process_index == rank:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "hang":
                    signal.pause()
                raise RuntimeError(REASON)
        plain_step(loop)

    run = Run(parse_recipe(job["values"]))
    Trainer._train_step, Trainer._evaluate = step, evaluate
    try:
        with run.session("test") as this:
            this.run(["prepare", *this.recipe.phases])
    except Left:
        pass
    finally:
        Trainer._train_step, Trainer._evaluate = plain_step, plain_evaluation
    rank = run.accelerator.process_index
    (run.folder / f"ratios-{rank}.json").write_text(json.dumps(ratios))


def do_all() -> None:
    for one in json.loads(Path(sys.argv[1]).read_text()):
        do(one)


if __name__ == "__main__":
    run_and_exit(do_all)
