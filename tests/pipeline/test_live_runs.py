"""`drprune run` on a terminal: the view while it trains, and lines if they are asked for."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from drpruning.common.console import Reporter
from drpruning.pipeline import run as pipeline
from drpruning.pipeline.targets import run_recipe
from drpruning.recipe import parse_recipe
from helpers.small_runs import logged


def shown(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, plain: bool) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=100, height=40, highlight=False,
        _environ={"TERM": "xterm"},
    )  # fmt: skip
    monkeypatch.setattr(pipeline, "Reporter", lambda **given: Reporter(console=console, **given))
    run_recipe(parse_recipe(values), "test", ("prepare", "pretrain"), plain=plain)
    return out.getvalue()


def test_a_terminal_shows_the_view_unless_lines_are_asked_for(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = recipe_values | {"prune": None, "pretrain": recipe_values["pretrain"] | {"steps": 6}}
    values["model"] = {"source": values["model"]["source"]}
    live = shown(values | {"output": str(tmp_path / "live")}, monkeypatch, plain=False)
    lines = shown(values | {"output": str(tmp_path / "plain")}, monkeypatch, plain=True)
    assert re.search(rf"{tmp_path / 'live'} · running", Text.from_ansi(live).plain)
    assert "\x1b[2K" not in lines
    assert "pretrain 6/6" in lines
    assert logged(tmp_path / "live") == logged(tmp_path / "plain")
