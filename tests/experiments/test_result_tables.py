"""The tables and the figure that are made from results."""

import json
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy.stats import ttest_rel

from experiments import figure, table

LOSSES = {
    "constant": [(3.0, 2.0), (3.1, 2.2), (2.9, 2.1)],
    "default": [(3.0, 1.8), (3.2, 1.7), (2.9, 1.9)],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "variant": variant,
            "seed": seed,
            "initial_ratio": {"a": 0.75, "b": 0.25},
            "loss": {"a": a, "b": b},
            "source": {"a": 2.0, "b": 1.5},
            "share": {"a": 0.5, "b": 0.5},
            "churn": 0.1,
        }
        for variant, losses in LOSSES.items()
        for seed, (a, b) in enumerate(losses)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    return path


def test_paired_differences_are_those_of_a_paired_t_test(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["table.py", str(results), "--pair", "default", "constant"])
    table.main()
    constant, pair = (
        [cell.strip() for cell in line.split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("| constant |", "| default to constant"))
    )
    average = fmean(math.exp((a + b) / 2) for a, b in LOSSES["constant"])
    weighted = fmean(0.75 * a + 0.25 * b for a, b in LOSSES["constant"])
    assert constant[2:7] == ["3", f"{average:.2f}", "3.000", f"{weighted:.3f}", "1.00"]
    assert pair[2] == "3"
    worst = [[max(pair) for pair in LOSSES[name]] for name in ("default", "constant")]
    assert f"(p {ttest_rel(*worst).pvalue:.2g};" in pair[4]
    assert pair[4].startswith("+0.033 ± 0.033")
    assert pair[3].startswith("-12.")


def test_the_figure_has_a_mark_of_each_variant_and_seed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "figure.svg"
    monkeypatch.setattr(sys, "argv", ["figure.py", str(output), f"a = b={results}"])
    figure.main()
    drawn = output.read_text()
    assert "a = b" in drawn
    for variant in LOSSES:
        label, colour, _ = figure.MARKS[variant]
        assert label in drawn
        assert drawn.count(f'style="fill: {colour.lower()}') >= 3
    assert figure.MARKS["ado"][0] not in drawn
