"""What a person sees while something runs: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines of one task."""
PLAIN_WIDTH = 120
"""Characters of a line where standard output is no terminal, as in a file or a pipe."""


def plain_console() -> Console:
    """Standard output for tables and text, numbers uncoloured."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def make_table(*headers: str | Text, left: Collection[int] = (0,)) -> Table:
    """An empty table in the style of all tables.

    Args:
        headers: One for each column.
        left: Positions of the columns that are text; all others are numbers, aligned at the right.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position in left else "right", overflow="fold")
    return table


def seconds_text(seconds: float) -> str:
    """A duration for people: `42s`, `3m05s`, `2h10m`, `4d03h`."""
    whole = round(seconds)
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // lower_size:02d}{lower}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class Task:
    """Something with a known number of steps that is under way."""

    def __init__(self, reporter: "Reporter", title: str, total: int, done: int = 0):
        """Begin at `done` of `total` steps (an interrupted task goes on)."""
        self._reporter, self._title, self._total = reporter, title, total
        self._first, self._start = done, time.monotonic()
        self._last_plain = float("-inf")
        self._live: Live | None = None
        if reporter.live:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=reporter.console,
            )
            self._id = self._progress.add_task(title, total=total, completed=done, left="")
            self._detail = Text()
            self._live = Live(
                Group(self._progress, self._detail), console=reporter.console, transient=True
            )
            self._live.start()

    def update(self, done: int, detail: str = "") -> None:
        """Say how far it is, with details under the bar; plain lines come only now and then."""
        now = time.monotonic()
        left = self._seconds_left(done, now)
        if self._live is not None:
            self._progress.update(self._id, completed=done, total=self._total, left=left)
            if detail:
                self._detail.plain = detail
        elif detail and (now - self._last_plain >= PLAIN_INTERVAL or done == self._total):
            self._last_plain = now
            words = [f"{self._title} {done:,}/{self._total:,}", detail, left]
            self._reporter.line("  ".join(filter(None, words)))

    def _seconds_left(self, done: int, now: float) -> str:
        if done <= self._first or done >= self._total:
            return ""
        pace = (now - self._start) / (done - self._first)
        return f"{seconds_text(pace * (self._total - done))} left"

    def close(self) -> None:
        """Take the live lines away."""
        if self._live is not None:
            self._live.stop()


class Reporter:
    """Where progress and messages go; a silent one for the ranks that do not speak."""

    def __init__(self, *, silent: bool = False, console: Console | None = None):
        """Write to `console` (default: standard output), or nowhere if `silent`."""
        self.console = console or Console(highlight=False, quiet=silent)
        self.live = self.console.is_terminal and not silent

    def line(self, text: str) -> None:
        """A line of its own, above the live ones."""
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """A task with a progress bar; it is closed at the end of the block."""
        task = Task(self, title, total, done)
        try:
            yield task
        finally:
            task.close()
