"""The command `drprune`: its commands, exit statuses, and all text that it prints for people."""


def main() -> None:
    """Run the command that the arguments of this process name; the entry point of `drprune`."""
    from drpruning.cli.app import interrupt_on_signals, run_and_exit
    from drpruning.cli.commands import app

    interrupt_on_signals()
    run_and_exit(app)
