"""What a person sees while something runs: one live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines of one task."""


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
        self._reporter, self._title, self.total = reporter, title, total
        self._first, self._start = done, time.monotonic()
        self._last_plain = float("-inf")
        self._progress: Progress | None = None
        if reporter.live:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=reporter.console,
                transient=True,
                expand=False,
            )
            self._id = self._progress.add_task(title, total=total, completed=done, detail="")
            self._progress.start()

    def update(self, done: int, detail: str = "") -> None:
        """Say how far it is; `detail` stands beside the count. Plain lines come now and then."""
        if self._progress is not None:
            fields = {"detail": detail} if detail else {}
            self._progress.update(self._id, completed=done, total=self.total, **fields)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if detail and (now - self._last_plain >= PLAIN_INTERVAL or done == self.total):
            self._last_plain = now
            left = self._seconds_left(done, now)
            self._reporter.line(f"{self._title} {done}/{self.total}  {detail}{left}")

    def _seconds_left(self, done: int, now: float) -> str:
        if done <= self._first or done >= self.total:
            return ""
        pace = (now - self._start) / (done - self._first)
        return f"  {seconds_text(pace * (self.total - done))} left"

    def close(self) -> None:
        """Take the live line away."""
        if self._progress is not None:
            self._progress.stop()


class Reporter:
    """Where progress and messages go; a silent one for the ranks that do not speak."""

    def __init__(self, *, silent: bool = False, console: Console | None = None):
        """Write to `console` (default: standard output), or nowhere if `silent`."""
        self.console = console or Console(highlight=False, quiet=silent)
        self.live = self.console.is_terminal and not silent

    def line(self, text: str) -> None:
        """A line of its own, above the live one."""
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
