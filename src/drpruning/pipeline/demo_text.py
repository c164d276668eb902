"""Text that every Python installation has, in four domains that differ in kind."""

import ast
import json
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

DOMAIN_CHARACTERS = 1_600_000
LONGEST_DOCUMENT = 20_000
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    """The standard library's modules, parsed, in a fixed order that mixes packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [p for p in root.rglob("*.py") if not SKIPPED & set(p.relative_to(root).parts)]
    for path in sorted(files, key=lambda p: (p.stem[::-1], p)):
        if path.stat().st_size > 200_000:
            continue
        try:
            yield path, ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue


def _take_docstrings(tree: ast.Module) -> str:
    """Remove the docstrings of a module; returns them, each under the name it documents."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        found.append(f"{getattr(node, 'name', '')}\n{text}".strip())
        node.body = node.body[1:] or [ast.Pass()]
    return "\n\n".join(found)


def _code_and_docstrings() -> tuple[list[str], list[str]]:
    code: list[str] = []
    prose: list[str] = []
    for _, tree in _modules():
        docstrings = _take_docstrings(tree)
        if sum(map(len, code)) < DOMAIN_CHARACTERS:
            code.append(ast.unparse(tree)[:LONGEST_DOCUMENT])
        if len(docstrings) > 200:
            prose.append(docstrings[:LONGEST_DOCUMENT])
        if min(sum(map(len, code)), sum(map(len, prose))) >= DOMAIN_CHARACTERS:
            break
    return code, prose


def _reference() -> list[str]:
    from pydoc_data.topics import topics

    return [text[:LONGEST_DOCUMENT] for text in topics.values()]


def _unicode() -> list[str]:
    """The names of characters, one document for every 64 code points."""
    documents, characters = [], 0
    for start in range(0x20, sys.maxunicode - 64, 64):
        lines = [
            f"U+{point:04X} {name.lower()}"
            for point in range(start, start + 64)
            if (name := unicodedata.name(chr(point), "")) and "IDEOGRAPH" not in name
        ]
        if len(lines) > 16 and "HANGUL" not in lines[0].upper():
            documents.append("\n".join(lines))
            characters += len(documents[-1])
        if characters >= DOMAIN_CHARACTERS:
            break
    return documents


def write_demo_text(folder: Path) -> dict[str, int]:
    """Write the demo's domains as JSON lines.

    Args:
        folder: Where NAME.jsonl go: `code` (standard library without its comments), `docstrings`,
            `reference` (the language reference that `help()` shows), `unicode` (character names).

    Returns:
        Domain -> characters.
    """
    code, docstrings = _code_and_docstrings()
    texts = {
        "code": code,
        "docstrings": docstrings,
        "reference": _reference(),
        "unicode": _unicode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in texts.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text in documents:
                file.write(json.dumps({"text": text}) + "\n")
    return {name: sum(map(len, documents)) for name, documents in texts.items()}
