"""The command line's application: how a command is registered, and its exit statuses."""

import functools
from collections.abc import Callable
from typing import Any

import typer

from drpruning.errors import BadInput
from drpruning.training import Interrupted

BAD_INPUT, INTERRUPTED = 2, 130

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
            except ModuleNotFoundError as error:
                if str(error.name).startswith("drpruning"):
                    raise
                typer.echo(
                    f"drprune: this needs {error.name}: pip install 'drpruning[train]'", err=True
                )
                raise typer.Exit(BAD_INPUT) from None
            except Interrupted:
                typer.echo("drprune: interrupted; saved. The same command goes on.", err=True)
                raise typer.Exit(INTERRUPTED) from None
            except KeyboardInterrupt:
                typer.echo("drprune: interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from None

        lines = "\n\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
        return app.command(epilog=f"Examples:\n\n{lines}")(guarded)

    return register
