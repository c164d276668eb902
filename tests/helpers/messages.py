"""The texts in the package's source that a user may meet, with `…` for what is filled in."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


def texts() -> Iterator[str]:
    """Every string of the source that is no docstring; f-strings with `…` in place of values."""
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        skipped = set()
        for node in ast.walk(tree):  # from the outside to the inside
            if isinstance(node, ast.Expr):
                skipped.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                skipped.update(node.values)
                yield "".join(_text(part) for part in node.values)
            elif isinstance(node, ast.Constant) and node not in skipped:
                yield _text(node)


def _text(node: ast.expr) -> str:
    constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return re.sub(r"%[sd]", "…", str(node.value)) if constant else "…"
