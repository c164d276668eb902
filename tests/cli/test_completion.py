"""Shell completion of commands, options and the values that do not depend on the user's files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.recipe.scheduling import DEFAULTS

DRPRUNE = Path(sys.executable).parent / "drprune"


def completed(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    environment = {
        "_DRPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="drprune", env=environment)
    assert result.exit_code == 0, result.output
    return result.output.split()


def test_commands_and_options_complete() -> None:
    assert completed("drprune", "re") == ["report", "replay", "reference-loss"]
    assert completed("drprune", "replay", "runs/a", "--po") == ["--policy"]


def test_policies_and_phases_complete() -> None:
    assert completed("drprune", "replay", "runs/a", "--policy", "") == list(DEFAULTS)
    assert completed("drprune", "replay", "runs/a", "--policy", "c") == ["constant", "cvar"]
    assert completed("drprune", "replay", "runs/a", "--policy", "none") == []
    for command in ("replay", "export-schedule"):
        assert completed("drprune", command, "runs/a", "--phase", "p") == ["prune", "pretrain"]
        assert completed("drprune", command, "runs/a", "--phase", "pre") == ["pretrain"]


@pytest.mark.skipif(
    not DRPRUNE.exists() or shutil.which("bash") is None, reason="needs drprune and bash"
)
def test_the_script_for_bash_offers_them() -> None:
    script = (
        'eval "$(drprune --show-completion)"\n'
        "complete -p drprune\n"
        "COMP_WORDS=(drprune replay runs/a --policy gr) COMP_CWORD=4\n"
        '_drprune_completion drprune && echo "offered: ${COMPREPLY[*]}"'
    )
    path = f"{DRPRUNE.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": path},
    )
    assert "complete -o default -F _drprune_completion drprune" in done.stdout
    assert "offered: group_dro" in done.stdout


def test_help_says_how_to_switch_it_on() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
