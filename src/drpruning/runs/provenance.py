"""What a run was made with: versions of packages, commit of the checkout."""

import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from drpruning.common.files import dumps
from drpruning.runs.folder import RunFolder

PACKAGES = ("drpruning", "torch", "transformers", "accelerate", "datasets", "numpy", "scipy")


def versions() -> dict[str, str]:
    """The versions of the packages that are installed, by name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The commit of the checkout that drpruning runs from, with `+` if it was changed since.

    It is asked once per process, at its start: the checkout can change while a run is training.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(root), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def note_session(folder: RunFolder, command: str, ranks: int) -> None:
    """Append the start of a command to sessions.jsonl, which makes the folder that of a run."""
    session = {
        "time": time.time(),
        "command": command,
        "ranks": ranks,
        "versions": versions(),
        "commit": commit(),
    }
    with folder.sessions.open("a", encoding="utf-8") as file:
        file.write(dumps(session) + "\n")
