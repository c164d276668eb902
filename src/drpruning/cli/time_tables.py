"""What `drprune plan --time` prints."""

from collections.abc import Sequence
from itertools import groupby

from drpruning.common.console import make_table, plain_console, seconds_text
from drpruning.pipeline.timing import Part

NOTES = (
    "estimated from {steps} of each phase with random tokens, on this machine as busy as it is now",
    "validation blocks are taken to be as many as the recipe allows, unless the data are prepared",
    "not counted: preparing data, measuring models for reference losses, forecasts, compiling",
)


def print_times(parts: Sequence[Part], steps: int) -> None:
    """Print the estimated time of the run, of each stage, and of the parts of it.

    Args:
        parts: Those of a stage follow one another.
        steps: Steps from which the time was estimated.
    """
    table = make_table("time", "number", "each", "in all")
    for stage, group in groupby(parts, key=lambda part: part.stage):
        own = list(group)
        table.add_row(stage, "", "", seconds_text(sum(part.seconds for part in own)))
        for part in own:
            each, seconds = _short(part.each), seconds_text(part.seconds)
            table.add_row(f"  {part.what}", f"{part.count:,}", each, seconds)
    table.add_section()
    table.add_row("total", "", "", seconds_text(sum(part.seconds for part in parts)))
    console = plain_console()
    console.print(table)
    for note in NOTES:
        text = note.format(steps="1 step" if steps == 1 else f"{steps} steps")
        console.print(f"({text})", soft_wrap=True)


def _short(seconds: float) -> str:
    """A duration that may be well below a second."""
    return f"{seconds:.2g}s" if seconds < 10 else seconds_text(seconds)
