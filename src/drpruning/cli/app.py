"""How a command ends where it may be one of several ranks: at once, and the cause first."""

import errno
import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import typer

from drpruning.common.errors import BadInput, Interrupted, TrainingError
from drpruning.training.signals import SIGNALS

MOMENT = 1.0
"""Seconds in which a launcher sees that a process has ended: `torchrun` looks every 0.1 s, and
calls the first rank in number among those it finds the root cause."""

_ANOTHER_IS_GONE = ("gloo/transport", "remote process exited")
"""In the errors of gloo and NCCL where a connection breaks."""


def run_and_exit(command: Callable[[], object]) -> NoReturn:
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


def wait_unless_first_rank() -> bool:
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


FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_OF_THE_PLACE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
"""Errors of the file system that say something of the name or place that was given."""
_OF_THE_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}
"""Errors of the file system that say something of the storage."""

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
                function(*args, **kwargs)
            except BadInput as error:
                typer.echo(f"drprune: {error}", err=True)
                raise typer.Exit(BAD_INPUT) from None
            except TrainingError as error:
                typer.echo(f"drprune: {error}", err=True)
                raise typer.Exit(FAILED) from None
            except ModuleNotFoundError as error:
                if str(error.name).startswith("drpruning"):
                    raise
                typer.echo(
                    f"drprune: this needs {error.name}: pip install 'drpruning[train]'", err=True
                )
                raise typer.Exit(BAD_INPUT) from None
            except Interrupted:
                if wait_unless_first_rank():
                    typer.echo("drprune: interrupted; saved. The same command goes on.", err=True)
                raise typer.Exit(INTERRUPTED) from None
            except OSError as error:
                if error.errno in _OF_THE_STORAGE:
                    place = f"{error.filename}: " if error.filename else ""
                    typer.echo(
                        f"drprune: {place}{error.strerror}; what was saved stands: put this right, "
                        "then the same command goes on",
                        err=True,
                    )
                    raise typer.Exit(FAILED) from None
                if error.errno not in _OF_THE_PLACE or error.filename is None:
                    raise
                place = f"{error.filename}: {error.strerror}"
                typer.echo(f"drprune: {place}; name another place", err=True)
                raise typer.Exit(BAD_INPUT) from None
            except KeyboardInterrupt:
                typer.echo("drprune: interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from None

        lines = "\n\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
        return app.command(epilog=f"Examples:\n\n{lines}")(guarded)

    return register


def interrupt_on_signals() -> None:
    """From now on SIGTERM raises `KeyboardInterrupt`, as SIGINT does; another one ends at once."""
    for name in SIGNALS:
        signal.signal(name, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    for name in SIGNALS:
        signal.signal(name, signal.SIG_DFL)
    raise KeyboardInterrupt
