"""The documents and the code say the same."""

import re
from pathlib import Path

import pytest

from drpruning import recipe

ROOT = Path(__file__).parents[1]
SECTIONS = [
    value
    for value in vars(recipe).values()
    if isinstance(value, type) and issubclass(value, recipe.Section) and value.model_fields
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_of_a_recipe_is_documented(section: type[recipe.Section]) -> None:
    text = (ROOT / "docs" / "recipe.md").read_text()
    for name in section.model_fields:
        assert f"| `{name}` |" in text, name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_python_in_the_documents_runs(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})  # noqa: S102 - our own documents
    assert len(blocks) >= (1 if page.name == "scheduling.md" else 0)


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_readme_says_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
