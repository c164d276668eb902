"""Signals in these tests are those of a process in the foreground, however pytest was started."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _foreground_signals() -> Iterator[None]:
    """In the background of a script SIGINT is ignored from the start, under nohup SIGHUP."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
