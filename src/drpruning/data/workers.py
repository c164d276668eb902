"""Worker processes that end with this process, however it ends."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from drpruning.common.errors import BadInput

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_OF_THE_TERMINAL = {signal.SIGINT, signal.SIGHUP}
"""Signals that a terminal sends to the workers too: Ctrl-C, and that it closes."""


@contextmanager
def worker_processes(count: int) -> Iterator[Executor]:
    """Open a pool of processes; on an early exit, work that has not begun is cancelled.

    Args:
        count: number of processes.

    Raises:
        BadInput: a process died.
    """
    # Forked processes share the libraries and the tokenizer that the parent has loaded; on other
    # systems forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(count, context, _begin_work)
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"  # threads of the tokenizer do not outlive a fork
    try:
        # Until a worker has set its own handlers it has this process's, which must not run in it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)
        pool.submit(os.getpid)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield pool
    except BrokenProcessPool:
        raise BadInput(
            f"data.workers: one of {count} processes was killed, most likely for lack of memory; "
            "set a lower number"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ[_PARALLELISM]
        if before is not None:
            os.environ[_PARALLELISM] = before


def _begin_work() -> None:
    """Leave the terminal's signals to the parent, and end when the parent has ended."""
    for number in _OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_TERMINAL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
