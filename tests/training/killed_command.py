"""The command line in a process that ends itself at a moment: MOMENT COUNT SIGNAL ARGUMENTS...

At the COUNTth time that MOMENT comes, the process sends itself SIGNAL, as if from outside.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

LOOP = "drpruning.training.trainer"
CHECKPOINT = "drpruning.training.checkpoint"
PHASES = "drpruning.training.phases"

MOMENTS = {
    "preparing": ("drpruning.data.packing", "_write", "before"),
    "prepared": ("drpruning.data.preparation", "write_manifest", "after"),
    "step": (LOOP, "Trainer._train_step", "after"),
    "micro-batch": (LOOP, "Trainer._backward", "after"),
    "evaluation": (LOOP, "domain_losses", "after"),
    "decision": (LOOP, "Trainer.after_evaluation", "after"),
    "line": ("drpruning.runs.log", "JsonLines.write", "torn"),
    "tensors": (LOOP, "write_tensors", "after"),
    "manifest": (CHECKPOINT, "write_manifest", "after"),
    "publishing": (CHECKPOINT, "publish", "before"),
    "published": (CHECKPOINT, "publish", "after"),
    "dropping": (CHECKPOINT, "discard", "renamed"),
    "export": (PHASES, "model_card", "before"),
    "exported": (PHASES, "save_model", "after"),
    "evaluating": ("drpruning.training.perplexity", "evaluate_perplexity", "before"),
    "reporting": ("drpruning.pipeline.run", "write_report", "before"),
}
"""Name -> module, what is called there, and when in the call the moment is."""


class Countdown:
    """Sends the signal when it has been asked often enough."""

    def __init__(self, count: int, number: signal.Signals) -> None:
        self.left, self.number = count, number

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def watch(moment: str, now: Countdown) -> None:
    """Have a moment noticed; `files` is any change to a file or folder."""
    if moment == "files":
        changes = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}

        def notice(event: str, arguments: tuple[Any, ...]) -> None:
            if event in changes or (event == "open" and "w" in str(arguments[1])):
                now()

        sys.addaudithook(notice)
        return
    module, path, when = MOMENTS[moment]
    home: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        home = getattr(home, part)
    setattr(home, name, noticed(getattr(home, name), when, now))


def noticed(function: Callable[..., Any], when: str, now: Countdown) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            now()
        elif when == "torn" and now.left == 1:
            with arguments[0].path.open("a") as file:
                file.write('{"kind": "st')
            now()
        elif when == "torn":
            now()
        elif when == "renamed" and now.left == 1:
            arguments[0].rename(arguments[0].with_name(f".{arguments[0].name}.old"))
            now()
        elif when == "renamed":
            now()
        result = function(*arguments, **options)
        if when == "after":
            now()
        return result

    return watched


def main() -> None:
    moment, count, number, *arguments = sys.argv[1:]
    watch(moment, Countdown(int(count), signal.Signals[number]))
    sys.argv = ["drprune", *arguments]
    from drpruning.cli import main

    main()


if __name__ == "__main__":
    main()
