"""The documentation site: it builds without a warning and asks nothing of a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from drpruning import pruning, scheduling

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LOADED = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"?(https?:[^\">\s]+)", re.I
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(build, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_is_a_page_and_the_schema_is_published(site: Path) -> None:
    pages = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} < pages
    assert {"index", "changelog", "contributing", "benchmarks", "examples"} < pages
    published = (site / "recipe.schema.json").read_bytes()
    assert published == (ROOT / "docs" / "recipe.schema.json").read_bytes()
    assert not list(site.rglob("*.py"))


def test_pages_load_nothing_from_a_network(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not LOADED.findall(path.read_text()), path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:", path.read_text()), path.name


def test_formulas_are_mathml_throughout(site: Path) -> None:
    formulas = []
    for path in site.glob("*.html"):
        assert "arithmatex" not in path.read_text(), path.name
        formulas += re.findall(r"<math\b.*?</math>", path.read_text(), flags=re.DOTALL)
    assert len(formulas) > 70
    assert not [formula for formula in formulas if "\\" in formula]


def test_the_reference_has_the_public_names(site: Path) -> None:
    text = (site / "api.html").read_text()
    for room in (scheduling, pruning):
        for name in room.__all__:
            shown = f'id="{room.__name__}.{name}"' in text
            assert shown or name in ("MIN_POINTS", "POLICY_NAMES"), name
