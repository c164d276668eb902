"""SIGINT and SIGTERM: the process leaves; in training, the step is finished and saved before."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from drpruning.common.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """While it is entered, a first signal only sets `requested`; a second acts as usual.

    One that came too late to be seen in the block raises `Interrupted` at its end, where all must
    be saved.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        self._previous.clear()

    def __enter__(self) -> Self:
        """Take the signals over, in the main thread only (others cannot)."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {name: signal.signal(name, self._handle) for name in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back.

        Raises:
            Interrupted: One came, and the block ended as if it had not.
        """
        self._restore()
        if self.requested and kind is None:
            raise Interrupted
