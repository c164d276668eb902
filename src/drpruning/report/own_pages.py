"""Telling the pages that this program wrote from other HTML files."""

from pathlib import Path

from drpruning import __version__
from drpruning.runs.folder import RunFolder

_HEAD_BYTES = 4096
_UNMARKED = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n<title>'
)
"""How a report began before pages had a mark (version 0.1.0)."""


def generator(kind: str) -> str:
    """What a page says in ``<meta name="generator">``.

    Args:
        kind: `report` or `replay`.
    """
    return f"drpruning {__version__} {kind}"


def is_page(path: Path, kind: str) -> bool:
    """Whether a file is a page of this kind, of any version.

    A report without the mark counts where every run has its report; anywhere else it may be what
    somebody has kept.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return False
    _, found, rest = head.partition('<meta name="generator" content="drpruning ')
    if found:
        return rest.partition('"')[0].split()[-1:] == [kind]
    run = RunFolder(path.parent)
    in_run = path.name == run.report.name and (run.recipe.is_file() or run.metrics.is_file())
    own_style = "--series-0" in head
    return kind == "report" and in_run and own_style and head.lstrip("\n").startswith(_UNMARKED)
