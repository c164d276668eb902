"""What a person sees while something runs: a live bar on a terminal, plain lines elsewhere.

Progress goes through a `Reporter`. Warnings are log records of the loggers `drpruning.*`, so that
another program can quiet or redirect them; the command line shows them by `warnings_shown`.
"""

import errno
import logging
import os
import sys
import termios
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from textwrap import TextWrapper
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines of one task."""
BAR_REFRESHES, VIEW_REFRESHES = 4, 0.5
"""Times a second that a live bar and a view are drawn, by a thread of their own. A view takes some
milliseconds, in which Python does nothing else."""
WIDEST_BAR, BESIDE_THE_BAR = 32, 48
"""Columns of a progress bar, at most, and of the text on its line."""
PLAIN_WIDTH = 120
"""Characters of a line where standard output is no terminal, as in a file or a pipe."""


def can_redraw(console: Console) -> bool:
    """Whether lines that have been written can be replaced, as terminals but simple ones allow."""
    return console.is_terminal and not console.is_dumb_terminal


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


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is; a terminal gets it wrapped between words, never within one."""
    if console.is_terminal:  # rich would also break a word, such as a path, that is too long
        wrapper = TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(wrapper.fill(line) for line in text.splitlines())
    console.print(text, style=style, markup=False, soft_wrap=True)


class View(Protocol):
    """Draws what a terminal shows in place of a progress bar."""

    def __call__(self, console: Console, done: int, activity: str) -> RenderableType:
        """What to show now.

        Args:
            console: The terminal, for its size.
            done: Steps done.
            activity: What is being done, if it is not one of the steps.
        """


class Task:
    """Work with a known number of steps."""

    def __init__(
        self,
        reporter: "Reporter",
        title: str,
        total: int,
        done: int = 0,
        view: View | None = None,
    ):
        """Start at `done` of `total` steps; more than 0 where the work is resumed.

        On a terminal `view`, where it is given, is shown in place of a progress bar.
        """
        self._reporter, self._title, self._total = reporter, title, total
        self._first, self._start = done, time.monotonic()
        self._last_plain = float("-inf")
        self._live: Live | None = None
        if reporter.live:
            width = reporter.console.width - BESIDE_THE_BAR
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=max(1, min(WIDEST_BAR, width))),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=reporter.console,
            )
            self._id = self._progress.add_task(title, total=total, completed=done, left="")
            self._detail, self._shown, self._view = "", Text(), view
            self._done, self._activity = done, ""
            self._problems: list[Text] = []
            self._live = Live(
                console=reporter.console,
                transient=True,
                get_renderable=self._drawn,
                refresh_per_second=BAR_REFRESHES if view is None else VIEW_REFRESHES,
            )
            self._live.start(refresh=True)

    def _drawn(self) -> RenderableType:
        if self._view is not None:
            try:
                return self._view(self._reporter.console, self._done, self._activity)
            except Exception as error:  # work must not end because it cannot be drawn
                self._view = None
                self._problems = [Text(f"the view cannot be drawn: {error}", "yellow")]
        return Group(self._progress, self._shown, *self._problems)

    def update(self, done: int, detail: str = "") -> None:
        """Show how many steps are done, and details: under the bar, or in a line now and then."""
        now = time.monotonic()
        left = self._seconds_left(done, now)
        if self._live is not None:
            self._done = done
            self._progress.update(self._id, completed=done, total=self._total, left=left)
            if detail:
                self._detail = self._shown.plain = detail
        elif detail and (now - self._last_plain >= PLAIN_INTERVAL or done == self._total):
            self._last_plain = now
            words = [f"{self._title} {done:,}/{self._total:,}", detail, left]
            self._reporter.line("  ".join(filter(None, words)))

    def show_activity(self, text: str) -> None:
        """Show what is being done in place of the details, on a terminal only; "" ends it."""
        if self._live is not None:
            self._activity, self._shown.plain = text, text or self._detail

    def _seconds_left(self, done: int, now: float) -> str:
        if done <= self._first or done >= self._total:
            return ""
        pace = (now - self._start) / (done - self._first)
        return f"{seconds_text(pace * (self._total - done))} left"

    def close(self) -> None:
        """Remove the live lines from the terminal."""
        if self._live is not None:
            self._live.stop()


class Reporter:
    """Shows progress to a person; a silent one is for all ranks but the first."""

    def __init__(
        self,
        *,
        silent: bool = False,
        plain: bool = False,
        console: Console | None = None,
        view: View | None = None,
    ):
        """Write to `console` (default: standard output), or nowhere if `silent`.

        Args:
            silent: Whether to write nothing.
            plain: Whether to print lines on a terminal too, and nothing that moves.
            console: Where to write.
            view: What a terminal shows of training.
        """
        self.console = console or Console(highlight=False, quiet=silent)
        self.live = can_redraw(self.console) and not (silent or plain)
        self.view = view

    def line(self, text: str) -> None:
        """Print a line of its own, above the live ones."""
        print_line(self.console, text)

    def warn(self, text: str) -> None:
        """Log a warning, unless this reporter is silent."""
        if not self.console.quiet:
            logger.warning("%s", text)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show what is being waited for while the block runs, on a terminal only."""
        if not self.live:
            yield
            return
        with Live(Spinner("dots", text), console=self.console, transient=True) as live:
            live.refresh()  # at once: an import may keep the thread that refreshes from running
            yield

    @contextmanager
    def task(
        self, title: str, total: int, done: int = 0, *, view: View | None = None
    ) -> Iterator[Task]:
        """Show a progress bar, or a view in its place, while the block runs."""
        task = Task(self, title, total, done, view)
        try:
            yield task
        finally:
            task.close()


class _WarningLines(logging.Handler):
    """Shows log records as lines `warning: ...`."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        with self._console.capture() as capture:
            print_line(self._console, f"warning: {record.getMessage()}", "yellow")
        # A live display puts above itself what is written to sys.stdout, which it has replaced; a
        # console of rich would write past it.
        sys.stdout.write(capture.get())
        sys.stdout.flush()


@contextmanager
def warnings_shown(*, silent: bool = False) -> Iterator[None]:
    """Show the package's warnings on standard output while the block runs, or nowhere if silent."""
    handler = _WarningLines(Console(highlight=False, quiet=silent))
    package = logging.getLogger("drpruning")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


def detach_closed_terminal() -> None:
    """Let output go nowhere where its terminal has been closed, so that writing does not fail."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # a terminal without its other end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
