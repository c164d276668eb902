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
    """Leave Ctrl-C to the parent, which receives it too, and end when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
