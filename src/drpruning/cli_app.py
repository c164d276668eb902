"""The command line's application: how a command is registered, and its exit statuses."""

import errno
import functools
from collections.abc import Callable
from typing import Any

import typer

from drpruning.errors import BadInput, TrainingFailed
from drpruning.process_end import let_the_first_speak
from drpruning.training import Interrupted

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
            except TrainingFailed as error:
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
                if let_the_first_speak():
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
