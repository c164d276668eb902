"""The real command in a process of its own, killed or left alone."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

KILLED_COMMAND = Path(__file__).parents[1] / "training" / "killed_command.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT)


def plain(recipe: Path) -> subprocess.CompletedProcess[str]:
    """`drprune run`, left alone."""
    return start([sys.executable, "-m", "drpruning.cli", "run", recipe])


def killed(
    recipe: Path, moment: str, count: int, number: str = "SIGKILL"
) -> subprocess.CompletedProcess[str]:
    """`drprune run`, which sends itself a signal when a moment of killed_command.py has come."""
    return start([sys.executable, KILLED_COMMAND, moment, str(count), number, "run", recipe])
