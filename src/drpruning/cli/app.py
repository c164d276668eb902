"""How a command ends: errors become messages and exit statuses, also on one of many ranks."""

import errno
import functools
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from drpruning.common.console import detach_closed_terminal, warnings_shown
from drpruning.common.errors import (
    BadInput,
    EvaluationIncomplete,
    Interrupted,
    TrainingError,
)
from drpruning.training.signals import SIGNALS, is_ignored

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

MOMENT = 1.0
"""Seconds in which a launcher notices that a process has ended: `torchrun` looks every 0.1 s.

Ranks that have nothing of their own to say wait as long. A launcher ends all ranks once one has
ended, so the others leave the first rank time to speak. And `torchrun` takes the rank with the
earliest error, in seconds, for the root cause; a rank that was killed counts from the moment it is
noticed, so one whose connection to it broke must still be alive then.
"""

_CONNECTION_BROKEN = ("gloo/transport", "remote process exited")
"""In the errors of gloo (a plain RuntimeError) and NCCL where another rank has ended."""

_OF_THE_PLACE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
"""Errors of the file system that concern the name or place that was given."""
_OF_THE_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}
"""Errors of the file system that concern the storage."""

_COUNTS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_LAUNCH = (*_COUNTS, "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which a launcher tells a process which rank it is."""


def run_and_exit(command: Callable[[], object]) -> NoReturn:
    """Run a command, then end this process with its exit status."""
    status: Any = 0
    try:
        _recorded(command)()
    except SystemExit as end:
        status = end.code
    except Exception as error:
        status = FAILED
        rank = os.environ.get("RANK")
        title = "" if rank is None else f"drprune: rank {rank} fails:\n"
        sys.stderr.write(title + "".join(traceback.format_exception(error)))
    _leave_ranks(status)
    sys.exit(status)


def _recorded(command: Callable[[], object]) -> Callable[[], object]:
    """The command; on one of several ranks, its own error is recorded for torchrun's report."""
    if (rank := os.environ.get("RANK")) is None:
        return command

    def own_errors_only() -> None:
        try:
            command()
        except Exception as error:
            text = str(error)
            if "Timed out" in text or not any(words in text for words in _CONNECTION_BROKEN):
                raise
            sys.stderr.write(f"drprune: rank {rank} ends because another rank is gone: {text}\n")
            time.sleep(MOMENT)
            raise SystemExit(FAILED) from None

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # another launcher than torchrun
        return own_errors_only
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(own_errors_only)


def _leave_ranks(status: Any) -> None:
    """End a process that is one of several ranks at once, without tearing the interpreter down.

    A thread of gloo may still release a tensor then, and aborts the process if Python is gone.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


app = typer.Typer(
    name="drprune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with its examples; errors become messages and exit statuses."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                check_launch(os.environ)
                with warnings_shown(silent=os.environ.get("RANK", "0") != "0"):
                    function(*args, **{key: _expanded(value) for key, value in kwargs.items()})
            except (Exception, KeyboardInterrupt) as error:
                end_by_message(error)

        lines = "\n\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
        return app.command(epilog=f"Examples:\n\n{lines}")(guarded)

    return register


def expand_home(text: str) -> str:
    """Replace `~` in a path of the command line, which no shell does in `--output=~/runs`.

    Variables are left alone: shells replace them everywhere, so a `$` is one of the name itself.

    Args:
        text: A path, or a name on the Hub, which stays as it is.
    """
    return os.path.expanduser(text)  # noqa: PTH111 - Path would drop a leading ./


def _expanded(value: Any) -> Any:
    """An argument with `~` replaced in what is a path by its type."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return Path(expand_home(str(value))) if isinstance(value, Path) else value


def _outcome(error: BaseException) -> tuple[int, str]:
    """Exit status and message of an error; one that is a fault of the program is raised again."""
    match error:
        case BadInput():
            status, message = BAD_INPUT, str(error)
        case TrainingError() | EvaluationIncomplete():
            status, message = FAILED, str(error)
        case Interrupted():
            status, message = INTERRUPTED, "interrupted; saved. The same command resumes."
        case KeyboardInterrupt():
            status, message = INTERRUPTED, "interrupted"
        case ModuleNotFoundError() if not str(error.name).startswith("drpruning"):
            status, message = BAD_INPUT, f"this needs {error.name}: pip install 'drpruning[train]'"
        case OSError() if error.errno in _OF_THE_STORAGE:
            place = f"{error.filename}: " if error.filename else ""
            remedy = "what was saved stands: put this right, then the same command resumes"
            status, message = FAILED, f"{place}{error.strerror}; {remedy}"
        case OSError() if error.errno in _OF_THE_PLACE and error.filename is not None:
            status, message = BAD_INPUT, f"{error.filename}: {error.strerror}; name another place"
        case _:
            raise error
    return status, message


def end_by_message(error: BaseException) -> NoReturn:
    """Print the message of an error, once where all ranks have the same, and exit with its status.

    Raises:
        typer.Exit: The error has a message for the user; else it is raised again.
    """
    status, message = _outcome(error)
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        for name in SIGNALS:  # the launcher ends this rank as soon as the first has spoken
            signal.signal(name, signal.SIG_DFL)
        time.sleep(MOMENT)
    if first or status != INTERRUPTED:  # all ranks are interrupted together
        typer.echo(f"drprune: {message}", err=True)
    raise typer.Exit(status) from None


def check_launch(environment: Mapping[str, str]) -> None:
    """Refuse what is set of a launcher's environment variables where no launcher sets them so.

    Args:
        environment: The process's environment variables.

    Raises:
        BadInput: One is not a number, is out of range, or is set without the others.
    """
    given = {name: environment[name] for name in _LAUNCH if name in environment}
    if not any(name in given for name in _COUNTS):
        return
    remedy = f"start it by torchrun or accelerate launch, or unset {' '.join(given)}"
    for name in ("MASTER_PORT", *_COUNTS):
        if name in given and not given[name].isdecimal():
            raise BadInput(f"{name}={given[name]}: not a whole number; {remedy}")
    if missing := [name for name in _LAUNCH if name not in given]:
        found = next(name for name in _COUNTS if name in given)
        raise BadInput(f"{found}={given[found]} is set, but not {', '.join(missing)}; {remedy}")
    if not int(given["MASTER_PORT"]) < 2**16:
        raise BadInput(f"MASTER_PORT={given['MASTER_PORT']}: ports end at 65535; {remedy}")
    for name in ("RANK", "LOCAL_RANK"):
        if int(given[name]) >= int(given["WORLD_SIZE"]):
            raise BadInput(
                f"{name}={given[name]}: with WORLD_SIZE={given['WORLD_SIZE']} ranks it must be "
                f"less than that; {remedy}"
            )
    try:  # torch would try to connect for half an hour, deaf to signals
        socket.getaddrinfo(given["MASTER_ADDR"], None)
    except (OSError, UnicodeError):
        raise BadInput(f"MASTER_ADDR={given['MASTER_ADDR']}: no such host; {remedy}") from None


def interrupt_on_signals() -> None:
    """From now on a signal to stop raises `KeyboardInterrupt`; a second one ends at once.

    Signals that were ignored at the start (by `nohup`, or in the background of a script) stay so.
    """
    for name in SIGNALS:
        if not is_ignored(name):
            signal.signal(name, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    for name in SIGNALS:
        if not is_ignored(name):
            signal.signal(name, signal.SIG_DFL)
    if number == signal.SIGHUP:
        detach_closed_terminal()
    raise KeyboardInterrupt
