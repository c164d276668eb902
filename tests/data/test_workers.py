"""Worker processes end with the process they work for, whatever ends it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from drpruning.common.errors import BadInput
from drpruning.data.workers import worker_processes

PARENT = """
import multiprocessing, signal, time
from drpruning.data.workers import worker_processes
from drpruning.cli.app import interrupt_on_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
interrupt_on_signals()
try:
    with worker_processes(3) as pool:
        pool.submit(len, "a").result()
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        pool.submit(time.sleep, 0.3).result()
        time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [
        (signal.SIGKILL, False, -9),
        (signal.SIGTERM, False, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGINT, True, 130),
        (signal.SIGHUP, True, 130),
    ],
    ids=["killed", "asked", "interrupted", "Ctrl-C", "terminal closed"],
)
def test_workers_end_with_their_parent_and_say_nothing(
    number: signal.Signals, to_all: bool, status: int
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 3
    assert all(map(runs, children))
    (os.killpg if to_all else os.kill)(parent.pid, number)
    said, complaints = parent.communicate(timeout=30)  # the pipes close when all have ended
    assert (parent.returncode, said, complaints) == (status, "", "")
    latest = time.monotonic() + 20
    while any(map(runs, children)):
        assert time.monotonic() < latest
        time.sleep(0.01)


def test_worker_that_is_killed_is_reported() -> None:
    with (
        pytest.raises(BadInput, match=r"data\.workers: one of 2 processes was killed"),
        worker_processes(2) as pool,
    ):
        pool.submit(os._exit, 9).result()


def test_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with worker_processes(1) as pool:
        assert pool.submit(os.getenv, "TOKENIZERS_PARALLELISM").result() == "false"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
