"""The documents and the code say the same: fields, code, commands, recipes, messages, the paper."""

import os
import re
from pathlib import Path

import pytest

from helpers.recipe_tables import SECTIONS, sections_of, with_tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_field_of_a_recipe_is_documented_as_its_docstring_says() -> None:
    page = DOCS / "recipe.md"
    if "REMAKE_DOCS" in os.environ:
        page.write_text(with_tables(page.read_text()))
    assert sorted(sections_of(page.read_text())) == sorted(SECTIONS)
    assert page.read_text() == with_tables(page.read_text()), "REMAKE_DOCS=1 makes the tables"
