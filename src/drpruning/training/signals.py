"""The signals that ask a process to stop; in training, it finishes the step and saves before."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from drpruning.common.console import detach_closed_terminal
from drpruning.common.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the end of a job, and a terminal that closes."""


def is_ignored(number: signal.Signals) -> bool:
    """Whether a signal is ignored, as `nohup` and scripts' background jobs start a process."""
    return signal.getsignal(number) is signal.SIG_IGN


class InterruptGuard:
    """In its block, a first signal only sets `requested`; a second one acts as outside the block.

    A signal that came too late to be seen in the block raises `Interrupted` at its end, where all
    must be saved. Signals that are ignored stay ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        self._restore()
        if number == signal.SIGHUP:
            detach_closed_terminal()

    def _restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        self._previous.clear()

    def __enter__(self) -> Self:
        """Take the signals over; only the main thread can, in others nothing changes."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                name: signal.signal(name, self._handle) for name in SIGNALS if not is_ignored(name)
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the signals' handlers.

        Raises:
            Interrupted: A signal came, and the block ended as if it had not.
        """
        self._restore()
        if self.requested and kind is None:
            raise Interrupted
