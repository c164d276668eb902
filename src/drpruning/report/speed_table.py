"""The table of speed and memory that `drprune evaluate --speed` prints."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from drpruning.report.formats import UNKNOWN, factor
from drpruning.runs.speed import BatchSpeed, Speed, Spread

if TYPE_CHECKING:
    from rich.table import Table


def speed_table(speed: Speed) -> "Table":
    """Lay out tokens per second and memory for a terminal: models in columns.

    Args:
        speed: What was measured.

    Returns:
        A table to be printed with ``rich.console.Console().print``.
    """
    from rich.text import Text

    from drpruning.common.console import make_table

    out = make_table("", *(Text(model.label) for model in speed.models))
    sizes = sorted({each.batch for model in speed.models for each in model.batches})
    for batch in sizes:
        found = [
            next((each for each in model.batches if each.batch == batch), None)
            for model in speed.models
        ]
        out.add_section()
        out.add_row("one text" if batch == 1 else f"{batch} texts at once")
        for label, cell in _LINES:
            out.add_row(label, *(UNKNOWN if each is None else cell(each) for each in found))
    out.caption = Text(
        f"Median of {speed.repeats} repeats ± half the distance between the quartiles; prompts of "
        f"{speed.prompt_tokens} tokens, {speed.new_tokens} tokens written; {speed.dtype} on "
        f"{speed.machine.get('device', 'an unknown device')}, {speed.date[:10]}"
    )
    return out


def _rate(rate: Spread) -> str:
    if math.isnan(rate.median):
        return UNKNOWN
    return f"{rate.median:,.0f} ±{(rate.high - rate.low) / 2:,.0f}"


def _memory(size: float) -> str:
    if math.isnan(size):
        return UNKNOWN
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


_LINES: tuple[tuple[str, Callable[[BatchSpeed], str]], ...] = (
    ("  prefill, tokens/s", lambda each: _rate(each.prefill)),
    ("    times the source", lambda each: factor(each.prefill_times_source.median)),
    ("  decode, tokens/s", lambda each: _rate(each.decode)),
    ("    times the source", lambda each: factor(each.decode_times_source.median)),
    ("  peak memory", lambda each: _memory(each.memory)),
    ("    times the source", lambda each: factor(each.memory_times_source)),
)
