"""The table says what the evaluation files say."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from drpruning.report import render_table_text, results_table
from drpruning.report.formats import format_perplexity
from drpruning.report.table import Table, fitting_models
from drpruning.runs.records import load_run

MakeRun = Callable[..., Any]


def printed(table: Table, width: int = 80) -> str:
    out = io.StringIO()
    for models in fitting_models(table, width):
        Console(file=out, width=width, no_color=True).print(render_table_text(table, models))
    return out.getvalue()


def test_numbers_are_those_of_the_files(complete_run: Any) -> None:
    table = results_table([load_run(complete_run.folder)])
    assert table.domains == complete_run.domains
    assert [row.model for row in table.rows] == ["source", "as cut", "recovered"]
    for row, name in zip(table.rows, ("source", "pruned", "model"), strict=True):
        file = json.loads((complete_run.folder / "evaluation" / f"{name}.json").read_text())
        assert row.perplexity == file["perplexity"]
        assert row.average == file["average_perplexity"]
        assert row.worst == max(file["perplexity"].values())
        assert asdict(row.parameters) == file["parameters"]
        assert table.values(row) == [*file["perplexity"].values(), row.average, row.worst]


def test_models_that_runs_share_are_said_once(complete_run: Any, constant_run: Any) -> None:
    table = results_table([load_run(complete_run.folder), load_run(constant_run.folder)])
    assert [row.model for row in table.rows] == [
        "source",
        "as cut",
        "recovered (demo)",
        "recovered (constant)",
    ]


def test_best_is_the_lowest_of_the_recovered(complete_run: Any, constant_run: Any) -> None:
    both = results_table([load_run(complete_run.folder), load_run(constant_run.folder)])
    ends = [both.values(row) for row in both.rows if row.recovered]
    assert both.best() == [min(pair) for pair in zip(*ends, strict=True)]
    alone = results_table([load_run(complete_run.folder)])
    assert all(math.isnan(value) for value in alone.best())


def test_a_domain_that_one_model_lacks(fake_run: MakeRun) -> None:
    one, other = fake_run("one", ["a", "b"]), fake_run("other", ["a", "c"])
    one.evaluations("source")
    other.evaluations("model")
    table = results_table([load_run(one.folder), load_run(other.folder)])
    assert table.domains == ["a", "b", "c"]
    assert math.isnan(table.values(table.rows[0])[2])
    assert "–" in printed(table)


def test_text_holds_every_number_within_a_terminal(complete_run: Any, constant_run: Any) -> None:
    table = results_table([load_run(complete_run.folder), load_run(constant_run.folder)])
    text = printed(table)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for row in table.rows:
        assert f"{row.parameters.total:,}" in text
        for value in table.values(row):
            assert format_perplexity(value) in text


@pytest.mark.parametrize("width", [44, 60, 80, 120, 200])
def test_many_models_are_split_so_that_no_number_is_broken(fake_run: MakeRun, width: int) -> None:
    runs = [fake_run(f"a-run-of-a-long-name-{number}") for number in range(12)]
    for run in runs:
        run.evaluations("model")
    table = results_table([load_run(run.folder) for run in runs])
    lines = [line.strip() for line in printed(table, width).splitlines()]
    assert max(map(len, lines)) < width
    shown = [word for line in lines if line.startswith("parameters") for word in line.split()[1:]]
    assert shown == [f"{row.parameters.total:,}" for row in table.rows]
    averages = [word for line in lines if line.startswith("average") for word in line.split()[1:]]
    assert averages == [format_perplexity(row.average) for row in table.rows]


def test_names_are_not_markup(fake_run: MakeRun) -> None:
    run = fake_run("run", ["[bold]x", "$y$"])
    run.evaluations("source")
    assert "[bold]x" in printed(results_table([load_run(run.folder)]))


def test_no_evaluations_is_an_empty_table(fake_run: MakeRun) -> None:
    table = results_table([load_run(fake_run().folder)])
    assert table.rows == []
    assert table.best() == pytest.approx([math.nan, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.123, "5.12"), (999.5, "999.50"), (12345.6, "12,346"), (3.2e9, "3.2e+09"), (math.nan, "–")],
)
def test_perplexities_are_written_short(value: float, text: str) -> None:
    assert format_perplexity(value) == text
