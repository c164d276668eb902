"""The documents and the code say the same: fields, code, commands, recipes, messages, the paper."""

import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from drpruning.cli.commands import app
from drpruning.evaluation.prompts import load_prompts
from drpruning.recipe import load_recipe
from drpruning.recipe.yaml_io import dump_yaml, parse_yaml
from helpers.messages import texts
from helpers.recipe_tables import SECTIONS, sections_of, with_tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_field_of_a_recipe_is_documented_as_its_docstring_says() -> None:
    page = DOCS / "recipe.md"
    if "REMAKE_DOCS" in os.environ:
        page.write_text(with_tables(page.read_text()))
    assert sorted(sections_of(page.read_text())) == sorted(SECTIONS)
    assert page.read_text() == with_tables(page.read_text()), "REMAKE_DOCS=1 makes the tables"


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
NAMES = [page.name for page in PAGES]
FENCE = re.compile(r"(<!-- not run: [^\n]+ -->\n+)?^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.M)
NOT_RUN = {"README.md": 1, "clients.md": 1, "integrations.md": 2}
"""How many blocks of Python a page marks as not to be run, since they take a large model."""
TRAINING = ("families.md", "integrations.md", "plans.md")
"""Pages whose code makes models, which takes torch and Transformers."""


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """The fenced blocks of a language, and whether they are to be run."""
    found = FENCE.findall(page.read_text())
    return [(not mark, text) for mark, name, text in found if name == language]


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.name, marks=[pytest.mark.slow] * (p.name in TRAINING)) for p in PAGES],
)
def test_python_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = blocks(page, "python")
    names: dict[str, object] = {"__name__": "page"}
    for run, text in python:
        code = compile(text, str(page), "exec")
        if run:
            exec(code, names)  # noqa: S102 - our own documents
    assert sum(not run for run, _ in python) == NOT_RUN.get(page.name, 0)
    assert len(python) >= {"scheduling.md": 4, "policies.md": 2}.get(page.name, 0)
    assert not blocks(page, "py"), "write python, and mark what is not run"


def commands(page: Path) -> Iterator[str]:
    """The command lines of drprune on a page, without prompt, launcher and explanation."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        found = re.match(r"(?:    |\$ |    \$ )(?:drprune|.* -m drpruning\.cli) (.*)", line)
        if found is None:
            continue
        text = found[1]
        while text.endswith("\\") or text.count("'") % 2:
            text = text.removesuffix("\\") + " " + next(lines).strip()
        yield re.split(r"\s{2,}| # ", text)[0]


def test_commands_on_the_pages_exist_with_their_options() -> None:
    group = get_command(app)
    context = group.make_context("drprune", ["report", "RUN"])
    counted = 0
    for page in PAGES:
        for line in commands(page):
            words = shlex.split(line)
            command = group.get_command(context, words[0])
            assert command is not None, f"{page.name}: drprune {line}"
            if "[" in line:  # a summary of the options, not a call
                known = {name for option in command.params for name in option.opts}
                assert set(re.findall(r"--[\w-]+", line)) <= known, f"{page.name}: {line}"
            else:
                command.make_context(words[0], words[1:], parent=context)
            counted += 1
        for name, options in re.findall(r"`drprune ([a-z][\w-]*)([^`]*)`", page.read_text()):
            command = group.get_command(context, name)
            assert command is not None, f"{page.name}: drprune {name}"
            known = {name for option in command.params for name in option.opts}
            assert {*re.findall(r"--[\w-]+", options)} <= {*known, "--help"}, page.name
    assert counted > 20


DOMAINS = ("web", "books", "code")
BASE = {
    "model": {"source": "org/model", "target": {"num_layers": 2}},
    "data": {"domains": {n: {"source": f"{n}/", "share": 1 / 3} for n in DOMAINS}},
    "prune": {"steps": 300},
    "pretrain": {"steps": 3000},
    "output": "runs/a",
}
"""What an excerpt of a recipe is part of."""
EXCERPTS = {"target": "model"}
"""Fields that stand alone on a page -> the section that they are of."""


def recipes(text: str) -> Iterator[dict[str, Any]]:
    """The recipes in a block: itself, or where keys stand several times, one for each of them."""
    parts = re.split(r"^(?=\w)", text, flags=re.M)
    keys = [part.split(":")[0] for part in parts[1:]]
    for part in [text] if len(keys) == len(set(keys)) else parts[1:]:
        values = parse_yaml(part, "page") or {}
        assert isinstance(values, dict)
        for field in values.keys() & EXCERPTS.keys():
            section = EXCERPTS[field]
            values[section] = {**BASE[section], field: values.pop(field)}
        complete = {"model", "data", "output"} <= values.keys()
        yield values if complete else {**BASE, **values}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_on_a_page_are_valid(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = tmp_path / "runs" / "a" / "start.yaml"
    start.parent.mkdir(parents=True)
    start.write_text("reference_loss: {books: 2.5, code: 1.2}\n")
    for _, text in blocks(page, "yaml"):
        if text.startswith("kinds:"):  # the one other file of YAML that users write
            (tmp_path / "prompts.yaml").write_text(text)
            load_prompts(tmp_path / "prompts.yaml")
            continue
        for number, values in enumerate(recipes(text)):
            file = tmp_path / f"{number}.yaml"
            file.write_text(dump_yaml(values))
            load_recipe(file)
    assert blocks(page, "yaml") or page.name not in ("README.md", "recipe.md", "start.md")


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_readme_says_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


MESSAGES = re.compile(r"^\| (?:message|what you see) \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.M)


def test_messages_on_the_pages_are_in_the_source() -> None:
    source = set(texts())
    for page, least in (("troubleshooting.md", 40), ("checkpoints.md", 12)):
        rows = "".join(MESSAGES.findall((DOCS / page).read_text())).splitlines()
        quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
        assert len(quotes) >= least
        for quote in quotes:
            pattern = re.compile(".*?".join(map(re.escape, quote.split("…"))), re.DOTALL)
            assert any(map(pattern.search, source)), f"{page}: {quote}"


SECTIONS_OF_THE_PAPER = (
    "2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "5.2", "5.3",
    "B.1", "B.2", "B.3", "B.4", "B.5", "B.6",
)  # fmt: skip


def test_every_item_of_the_paper_is_on_its_page() -> None:
    text = (DOCS / "paper.md").read_text()
    items = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    for kind, last in (("Equation", 6), ("Table", 20), ("Figure", 7)):
        found = {n for item in items if kind in item for n in numbers_in(item.split(kind, 1)[1])}
        assert found == set(range(1, last + 1)), kind
    assert all(any(f" {section} " in item for item in items) for section in SECTIONS_OF_THE_PAPER)


@pytest.mark.slow
def test_every_name_on_the_page_of_the_paper_exists() -> None:
    names = re.findall(r"`(drpruning\.[\w.]+)`", (DOCS / "paper.md").read_text())
    assert len(names) > 40
    for name in names:
        assert resolves(name), name


def numbers_in(text: str) -> Iterator[int]:
    """The numbers in a list such as `s 4, 5 to 7`."""
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        yield from range(int(first), int(last or first) + 1)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
