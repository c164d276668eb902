"""How a command ends where it may be one of several ranks: at once, and the cause first."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

MOMENT = 1.0
"""Seconds in which a launcher sees that a process has ended: `torchrun` looks every 0.1 s, and
calls the first rank in number among those it finds the root cause."""

_ANOTHER_IS_GONE = ("gloo/transport", "remote process exited")
"""In the errors of gloo and NCCL where a connection breaks."""


def end_with(command: Callable[[], object]) -> NoReturn:
    """Do a command, then end this process with its status.

    An error is shown with the rank that it befell. One that only says that another rank is gone
    costs one line, and this process then leaves after the one that is to be blamed.
    """
    status: Any = 0
    try:
        command()
    except SystemExit as end:
        status = end.code
    except Exception as error:
        status = 1
        _show(error)
    _leave_ranks(status)
    sys.exit(status)


def let_the_first_speak() -> bool:
    """Whether this is the first rank; others wait, so that it is not ended before it has spoken."""
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        time.sleep(MOMENT)
    return first


def _show(error: Exception) -> None:
    rank, text = os.environ.get("RANK"), str(error)
    if rank is not None and "Timed out" not in text and any(s in text for s in _ANOTHER_IS_GONE):
        sys.stderr.write(f"drprune: rank {rank} ends because another rank is gone: {text}\n")
        time.sleep(MOMENT)
        return
    title = "" if rank is None else f"drprune: rank {rank} fails:\n"
    sys.stderr.write(title + "".join(traceback.format_exception(error)))


def _leave_ranks(status: Any) -> None:
    """End a process that is one of several ranks at once, without tearing the interpreter down.

    A thread of gloo may still let go of a tensor then, and aborts the process if Python is gone.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)
