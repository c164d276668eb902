"""Runs are compared by averages over the same things, or not at all."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from parsed_page import report
from test_table import printed

from drpruning.report import results_table
from drpruning.report.comparison import compare_phase
from drpruning.runs.records import load_run

MakeRun = Callable[..., Any]


def pair(fake_run: MakeRun, one: list[str], other: list[str]) -> list[Any]:
    runs = [fake_run("one", one), fake_run("other", other, policy="constant")]
    for run in runs:
        run.recipe()
        run.metrics("pretrain", total_steps=40, every=20)
        run.evaluations("model")
    return runs


def rewrite(run: Any, **fields: Any) -> None:
    file = run.folder / "evaluation" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_other_domains_are_left_out_of_averages(fake_run: MakeRun) -> None:
    runs = pair(fake_run, ["web", "code", "hard"], ["code", "web", "easy"])
    records = [load_run(run.folder) for run in runs]
    table = results_table(records)
    assert table.summaries == ["average, common domains", "worst, common domains"]
    assert table.note == "Domains common to all models: web, code."
    for row, record in zip(table.rows, records, strict=True):
        perplexity = record.evaluations["model"].perplexity
        common = [perplexity["web"], perplexity["code"]]
        assert row.average == pytest.approx(math.sqrt(common[0] * common[1]))
        assert row.worst == max(common)
    text = " ".join(printed(table).split())
    assert "average, common domains" in text
    assert "Domains common to all models: web, code." in text
    best = dict(zip(table.columns, table.best(), strict=True))
    assert math.isnan(best["hard"]), "one model alone is not the best"
    assert best["web"] == min(row.perplexity["web"] for row in table.rows)

    page = report(*runs)
    assert "Only over the domains common to all runs: web, code." in page.text
    shown = page.cells("comparison-pretrain-losses")[1:]
    for cells, record in zip(shown, records, strict=True):
        last = record.phases["pretrain"].evals[-1].loss
        losses = [last["web"], last["code"]]
        assert cells[2:] == [f"{math.exp(sum(losses) / 2):.2f}", f"{math.exp(max(losses)):.2f}"]


def test_runs_without_a_common_domain_are_not_compared(fake_run: MakeRun) -> None:
    runs = pair(fake_run, ["a", "b"], ["c", "d"])
    assert_not_compared(runs, "domains (none is common to all)")


def assert_not_compared(runs: list[Any], what: str) -> None:
    table = results_table([load_run(run.folder) for run in runs])
    assert table.summaries == []
    assert table.columns == table.domains
    assert all(math.isnan(value) for value in table.best())
    assert what in table.note
    assert not re.search("^ *(average|worst)", printed(table), re.MULTILINE)
    page = report(*runs)
    assert not any(attrs.get("class") == "best" for tag, attrs in page.tags if tag == "td")
    assert not any(cells[0] == "average" for cells in page.cells("results-table"))
    assert what in " ".join(page.text.split())
    assert "comparison-pretrain" not in page.figures()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"blocks": {"a": 48, "b": 12}}, "number of validation blocks (b)"),
        ({"sequence_length": 512}, "sequence length (256, 512)"),
    ],
)
def test_other_validation_data_are_not_compared(
    fake_run: MakeRun, fields: dict[str, Any], what: str
) -> None:
    runs = pair(fake_run, ["a", "b"], ["a", "b"])
    rewrite(runs[1], **fields)
    if "sequence_length" in fields:
        file = runs[1].folder / "metrics.jsonl"
        file.write_text(
            file.read_text().replace('"sequence_length": 256', '"sequence_length": 512')
        )
    assert_not_compared(runs, what)


def test_other_tokenizers_are_not_compared(fake_run: MakeRun) -> None:
    runs = pair(fake_run, ["a", "b"], ["a", "b"])
    for run, digest in zip(runs, ("1f", "2e"), strict=True):
        (run.folder / "data").mkdir()
        manifest = {"version": 1, "identity": {"tokenizer": digest}}
        (run.folder / "data" / "manifest.json").write_text(json.dumps(manifest))
    assert_not_compared(runs, "tokenizer")
    (runs[0].folder / "data" / "manifest.json").write_text("{")  # not known: nothing to refuse
    assert results_table([load_run(run.folder) for run in runs]).summaries == ["average", "worst"]


def test_an_average_over_fewer_domains_is_a_gap(fake_run: MakeRun) -> None:
    runs = pair(fake_run, ["a", "b"], ["a", "b"])
    run = runs[0]
    point = run.evaluation_point("pretrain", 60, 100, run.share, run.share)
    run.append(point | {"loss": {"a": 1.0, "b": None}})
    records = [(str(i), load_run(run.folder)) for i, run in enumerate(runs)]
    compared = compare_phase("pretrain", records)
    assert compared is not None
    assert [row.step for row in compared.rows] == [40, 40]
    only = compare_phase("pretrain", records[:1])
    assert only is None


def test_source_and_result_of_one_run_are_compared(complete_run: Any) -> None:
    table = results_table([load_run(complete_run.folder)])
    assert (table.summaries, table.note) == (["average", "worst"], "")
    assert "perplexity on validation data" in printed(table)
