"""The folded tables: intervals, and several runs in the form of the paper's tables."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page, report

from drpruning.report import write_report
from drpruning.runs.plans import compare_files
from drpruning.runs.records import load_run
from helpers.fake_run import PARAMETERS

MakeRun = Callable[..., Any]
EXTRA = ("measured-table", "recovery-table", "domain-table", "similarity-table")


def tables(page: Page) -> set[str]:
    return {attrs["id"] or "" for tag, attrs in page.tags if tag == "table"}


def rewrite(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def several(fake_run: MakeRun) -> list[Any]:
    """Three complete runs; the plan of the second has other layers."""
    runs = [fake_run(name, policy=name) for name in ("drpruning", "constant", "log_ratio")]
    for run in runs:
        run.recipe()
        run.evaluations()
        run.plan()
    rewrite(runs[1].folder / "prune" / "plan.json", layers=[0, 1, 3, 4, 5, 7])
    return runs


def test_one_run_without_intervals_has_none_of_them(complete_run: Any) -> None:
    page = report(complete_run)
    assert not tables(page) & set(EXTRA)


def test_intervals_and_bits_per_byte_are_those_that_were_measured(fake_run: MakeRun) -> None:
    run = fake_run("one", ["web", "code"])
    run.recipe()
    run.evaluations()
    run.intervals()
    page = report(run)
    head, *rows = page.cells("measured-table")
    assert head == ["Domain", "perplexity", "95% interval", "bits per byte"]
    assert [row for row in rows if len(row) == 1] == [["source"], ["as cut"], ["recovered"]]
    loss = load_run(run.folder).evaluations["source"].loss["web"]
    low, high = (f"{math.exp(loss + part):.2f}" for part in (-0.01, 0.01))
    assert rows[1] == ["web", f"{math.exp(loss):.2f}", f"{low}–{high}", f"{loss / 4:.3f}"]
    bits = load_run(run.folder).evaluations["source"].bits_per_byte
    assert rows[3][0] == "average"
    assert rows[3][-1] == f"{sum(bits.values()) / 2:.3f}"
    assert f'<span class="unit-nats">{loss - 0.01:.3f}–{loss + 0.01:.3f}</span>' in page.text


def test_a_model_of_another_tokenizer_has_bits_per_byte_alone(fake_run: MakeRun) -> None:
    run = fake_run("one", ["web", "code"])
    run.recipe()
    run.evaluations("source", "model")
    run.intervals()
    nothing = {"web": None, "code": None}
    rewrite(
        run.folder / "evaluation" / "model.json",
        loss=nothing,
        perplexity=nothing,
        interval={},
        average_perplexity=None,
        average_interval=None,
        worst_domain=None,
        note="Its tokenizer is another.",
    )
    page = report(run)
    assert "Its tokenizer is another." in page.text
    cells = page.cells("measured-table")
    bits = json.loads((run.folder / "evaluation" / "model.json").read_text())["bits_per_byte"]
    assert cells[-3] == ["web", "–", "–", f"{bits['web']:.3f}"]


def test_runs_stand_side_by_side_by_shape_and_by_domain(several: list[Any]) -> None:
    shape = PARAMETERS["model"] | {"total": 1_500_000}
    for name in ("pruned", "model"):
        rewrite(several[2].folder / "evaluation" / f"{name}.json", parameters=shape)
    page = report(*several)
    rows = page.cells("recovery-table")
    assert rows[0] == ["Run", "policy", "source", "after pruning", "after recovery"]
    shapes = [row[0] for row in rows if len(row) == 1]
    assert [shape.partition(":")[0] for shape in shapes] == ["3.2M parameters", "1.5M parameters"]
    assert "6 layers, hidden size 160" in shapes[0]
    for run, row in zip(several, [row for row in rows[1:] if len(row) > 1], strict=True):
        found = load_run(run.folder).evaluations
        averages = [f"{found[n].average_perplexity:.2f}" for n in ("source", "pruned", "model")]
        assert row == [run.folder.name, run.policy, *averages]

    head, *rows = page.cells("domain-table")
    assert head == ["Run", *several[0].domains, "average"]
    assert [row[0] for row in rows] == [
        "Source", "source", "After pruning", "drpruning", "After recovery",
        "drpruning", "constant", "log_ratio",
    ]  # fmt: skip
    for run, row in zip(several, rows[-3:], strict=True):
        found = load_run(run.folder).evaluations["model"].perplexity
        assert row[1:-1] == [f"{found[name]:.2f}" for name in several[0].domains]
    best = min(rows[-3:], key=lambda row: float(row[-1]))
    assert f'<td class="best"><span class="unit-ratio">{best[-1]}</span>' in page.text


def test_runs_of_other_data_are_not_averaged_or_ranked(several: list[Any]) -> None:
    rewrite(several[1].folder / "evaluation" / "model.json", sequence_length=512)
    page = report(*several)
    assert "recovery-table" not in tables(page)
    assert page.cells("domain-table")[0] == ["Run", *several[0].domains]
    assert 'class="best"' not in page.text.split('id="domain-table"')[1].split("</table>")[0]


def test_similarity_of_every_pair_stands_against_chance(several: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    paths = [run.folder for run in several]
    write_report(paths, tmp_path / "report.html", folder)
    page = Page((tmp_path / "report.html").read_text())
    head, *rows = page.cells("similarity-table")
    assert head == ["Runs", "layers", "hidden dimensions", "query heads", "intermediate dimensions"]
    pairs = compare_files(paths)
    for pair, row in zip(pairs, rows, strict=False):
        kinds = ("layer", "hidden", "head", "intermediate")
        assert row[1:] == [f"{pair.similarity[kind]:.1%}" for kind in kinds]
    assert [row[0] for row in rows] == [
        "drpruning and constant", "drpruning and log_ratio", "constant and log_ratio",
        "mean of the pairs", "by chance",
    ]  # fmt: skip
    assert rows[1][1:] == ["100.0%"] * 4
    assert rows[-1][1] == f"{(6 / 8) ** 2 + (2 / 8) ** 2:.1%}"
    written = {path.name for path in folder.iterdir()}
    for name in EXTRA[1:]:
        assert {f"{name}.csv", f"{name}.tex"} <= written


def test_runs_of_another_source_are_not_in_the_table_of_similarity(several: list[Any]) -> None:
    file = several[0].folder / "prune" / "plan.json"
    source = json.loads(file.read_text())["source"]
    target = json.loads(file.read_text())["target"]
    other = {"source": source | {"vocab_size": 100}, "target": target | {"vocab_size": 100}}
    rewrite(several[2].folder / "prune" / "plan.json", **other)
    page = report(*several)
    assert [row[0] for row in page.cells("similarity-table")] == [
        "Runs", "drpruning and constant", "by chance"
    ]  # fmt: skip
    assert "Of other sources: log_ratio." in page.text
    rewrite(several[1].folder / "prune" / "plan.json", **other)
    assert "similarity-table" not in tables(report(*several[:2]))
