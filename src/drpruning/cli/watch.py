"""`drprune watch`: the view of a run on another terminal than its own."""

import time
from pathlib import Path

from rich.live import Live
from rich.text import Text

from drpruning.common.console import can_redraw, plain_console
from drpruning.common.errors import BadInput
from drpruning.report.live_view import render
from drpruning.runs.follow import FolderFollower


def watch_run(folder: Path, *, once: bool, every: float) -> None:
    """Show a run until it is finished; once where standard output is no terminal.

    Args:
        folder: A run folder, also one that holds a run for each of several targets.
        once: Whether to print the view once and leave.
        every: Seconds between two looks.

    Raises:
        BadInput: It is no run folder, has not begun where it is looked at once, or a file in it is
            not what docs/run-folder.md says.
    """
    watched = _Watched(folder)
    once = once or not can_redraw(watched.console)
    if once and not watched.has_begun:
        raise BadInput(f"{folder}: no run has begun here yet; `drprune run RECIPE` begins one")
    try:
        if not once:
            watched.follow(every)
    finally:  # the last view stays where the one that moved was
        watched.console.print(watched.view())


class _Watched:
    """A folder, and what was last read of it."""

    def __init__(self, folder: Path):
        self.console = plain_console()
        self._follower = FolderFollower(folder)
        self._states = self._follower.read()

    @property
    def has_begun(self) -> bool:
        return any(state.has_begun for state in self._states)

    @property
    def is_finished(self) -> bool:
        return all(state.status == "finished" for state in self._states)

    def view(self, height: int | None = None) -> Text:
        ascii_only = self.console.options.ascii_only
        return render(self._states, time.time(), self.console.width, height, ascii_only=ascii_only)

    def follow(self, every: float) -> None:
        """Show the view on the terminal's other screen until the run is finished."""
        if self.is_finished:
            return
        with Live(console=self.console, screen=True, auto_refresh=False) as live:
            while not self.is_finished:
                live.update(self.view(self.console.height), refresh=True)
                time.sleep(every)
                if self.has_begun and not self._follower.folder.is_dir():
                    folder = self._follower.folder
                    raise BadInput(f"{folder}: the run folder has been removed or moved")
                self._states = self._follower.read()
