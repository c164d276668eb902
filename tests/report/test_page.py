"""The page: complete, self-contained, safe, and good with pieces missing."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from parsed_page import Page, line_of, plots_of, points_of, report

from drpruning.common.errors import BadInput
from drpruning.report import results_table, write_report
from drpruning.report.formats import format_perplexity, ranges
from drpruning.report.page import run_labels
from drpruning.runs.records import load_run

MakeRun = Callable[..., Any]
EVERY_FIGURE = {
    f"run1-{name}"
    for name in (
        "overview",
        "perplexity",
        "ratio",
        "reference-ratio",
        "excess",
        "steering",
        "realised-share",
        "forecasts",
        "prune-forecast-curves",
        "pretrain-forecast-curves",
        "mask-convergence",
        "sparsity",
        "throughput",
        "training-loss",
    )
}


def test_html_is_well_formed_and_ids_are_unique(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))


def test_nothing_is_fetched(page: str) -> None:
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"(src|href)\s*=\s*(?![\"']?#)", without_namespaces)
    assert not re.search(r"url\((?!#)", without_namespaces)
    assert not re.search(r"@import|<link|<iframe", without_namespaces)
    without_namespaces = without_namespaces.replace('"http://www.w3.org/2000/svg"', "")
    assert "://" not in without_namespaces


def test_the_page_runs_its_own_script_alone(page: str) -> None:
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('Content-Security-Policy" content="(.*?)"', page)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_figure_is_there_and_speaks(page: str) -> None:
    figures = Page(page).figures()
    assert set(figures) == EVERY_FIGURE
    for ident, figure in figures.items():
        plots = plots_of(figure)
        assert [plot.get("id") for plot in plots] == [f"{ident}-{i}" for i in range(len(plots))]
        for plot in plots:
            title, description = list(plot)[:2]
            name = plot.get("id")
            assert plot.get("aria-labelledby") == f"{name}-title {name}-desc"
            assert title.text
            assert len(description.text or "") > 30


def test_figures_hold_every_domain_and_point(page: str, complete_run: Any) -> None:
    figures = Page(page).figures()
    evaluations = 21 + 17
    for name in complete_run.domains:
        assert points_of(figures["run1-overview"], f"line-{name}") == evaluations
        assert points_of(figures["run1-perplexity"], f"loss-{name}") == evaluations
        assert line_of(figures["run1-perplexity"], f"reference-{name}") is not None
        realised = line_of(figures["run1-realised-share"], f"realised-{name}")
        dots = [element for element in realised.iter() if element.tag.endswith("use")]
        assert len(dots) == evaluations - 2
        for kind in ("ratio", "reference-ratio", "excess"):
            assert name in "".join(figures[f"run1-{kind}"].itertext())
            assert line_of(figures[f"run1-{kind}"], f"line-{name}") is not None
        for phase in ("prune", "pretrain"):
            assert line_of(figures["run1-forecasts"], f"forecast-{phase}-{name}") is not None
            assert points_of(figures["run1-forecasts"], f"end-{phase}-{name}") == 2
    assert points_of(figures["run1-overview"], "average") == evaluations
    for name in ("layer", "hidden", "head", "intermediate"):
        assert line_of(figures["run1-sparsity"], f"sparsity-{name}") is not None
        assert line_of(figures["run1-sparsity"], f"target-{name}") is not None
        assert points_of(figures["run1-mask-convergence"], f"similarity-{name}") == 17


def test_a_domain_keeps_its_colour_in_all_figures(page: str, complete_run: Any) -> None:
    figures = Page(page).figures()
    for index, name in enumerate(complete_run.domains):
        for ident, line in (
            ("overview", f"line-{name}"),
            ("perplexity", f"loss-{name}"),
            ("ratio", f"line-{name}"),
            ("excess", f"line-{name}"),
            ("realised-share", f"realised-{name}"),
        ):
            shown = ET.tostring(line_of(figures[f"run1-{ident}"], line), "unicode")
            assert set(re.findall(r"--series-\d", shown)) == {f"--series-{index}"}


def test_a_scale_has_two_units_for_the_same_line(page: str) -> None:
    figures = Page(page).figures()
    for ident in ("run1-overview", "run1-perplexity"):
        for plot in plots_of(figures[ident]):
            units = [e.get("class") for e in plot.iter() if (e.get("class") or "") != "plot"]
            assert sorted(unit for unit in units if unit) == ["unit-nats", "unit-ratio"]
            bottom, low, top, high, kind = json.loads(plot.get("data-y", ""))
            assert bottom > top
            assert low < high
            assert kind in {"times", "perplexity"}
            phases = [stretch[-1] for stretch in json.loads(plot.get("data-x", ""))]
            assert phases == ["pruning", "continued pretraining"]


def test_result_table_equals_the_files(page: str, complete_run: Any) -> None:
    rows = {row[0]: row[1:] for row in Page(page).cells("results-table") if len(row) > 1}
    table = results_table([load_run(complete_run.folder)])
    assert rows["Domain"] == ["source", "as cut", "recovered", "times the source"]
    assert rows["total"] == ["8,507,648", "3,197,920", "3,197,920", "0.38×"]
    assert rows["other"] == ["6,410,496", "1,887,200", "1,887,200", "0.29×"]
    for index, column in enumerate(table.columns):
        wanted = [format_perplexity(table.values(row)[index]) for row in table.rows]
        assert rows[column][:3] == wanted
    evaluations = load_run(complete_run.folder).evaluations
    factors = {
        name: evaluations["model"].perplexity[name] / evaluations["source"].perplexity[name]
        for name in complete_run.domains
    }
    assert {name: rows[name][3] for name in factors} == {n: f"{f:.2f}×" for n, f in factors.items()}
    mean = math.prod(factors.values()) ** (1 / len(factors))
    assert rows["average"][3] == f"{mean:.2f}×"
    assert rows["worst"][3] == f"{max(factors.values()):.2f}×"


def test_ratio_table_equals_the_log(page: str, complete_run: Any) -> None:
    log = (complete_run.folder / "metrics.jsonl").read_text().splitlines()
    last = [r for r in map(json.loads, log) if r["kind"] == "eval" and r["phase"] == "pretrain"][-1]
    _, *rows = Page(page).cells("run1-pretrain-updates")
    assert [row[0] for row in rows] == complete_run.domains
    for name, initial, ratio, reference, _, loss, reference_loss in rows:
        share = complete_run.share[name]
        assert initial == f"{share:.2%}"
        assert ratio == f"{last['ratio'][name]:.2%} ×{last['ratio'][name] / share:.2f}"
        assert reference.startswith(f"{last['reference_ratio'][name]:.2%}")
        assert loss == f"{math.exp(last['loss'][name]):.2f}"
        assert reference_loss == f"{math.exp(last['reference_loss'][name]):.2f}"


def test_title_plan_provenance_and_recipe(page: str) -> None:
    title = "base-8m pruned to 6 layers, hidden size 160, intermediate size 440, 5 query heads"
    assert title in page
    assert "8,507,648 parameters became 3,197,920 (37.6%)" in page
    assert "Layers removed, of 8: 3, 6." in page
    assert "torch 2.13.0; commit 0123abcd" in page
    assert "ratio updates 340 ms" in page
    assert "Measured on 48 blocks of 256 tokens per domain." in page
    assert "policy: drpruning" in page


def test_runs_are_compared(complete_run: Any, constant_run: Any, tmp_path: Path) -> None:
    output = write_report([complete_run.folder, constant_run.folder], tmp_path / "two.html")
    page = Page(output.read_text(encoding="utf-8"))
    figures = page.figures()
    assert len(page.ids) == len(set(page.ids))
    assert {name for name in figures if name.startswith("comparison")} == {
        "comparison-prune",
        "comparison-pretrain",
    }
    for kind in ("average", "worst"):
        for index in range(2):
            assert points_of(figures["comparison-pretrain"], f"{kind}-{index}") == 17
    last = [
        load_run(run.folder).phases["pretrain"].evals[-1] for run in (complete_run, constant_run)
    ]
    shown = page.cells("comparison-pretrain-losses")[1:]
    assert shown == [
        [
            name,
            "800",
            f"{math.exp(sum(p.loss.values()) / 5):.2f}",
            f"{math.exp(max(p.loss.values())):.2f}",
        ]
        for name, p in zip(("demo", "constant"), last, strict=True)
    ]
    assert any(attrs.get("class") == "best" for tag, attrs in page.tags if tag == "td")


def test_hostile_names_stay_text(fake_run: MakeRun) -> None:
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "$\\frac{", "Übung 中"]
    run = fake_run("a<b>&c", hostile).everything()
    page = report(run)
    assert "img" not in {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert set(page.figures()) == EVERY_FIGURE


@pytest.mark.parametrize("count", [1, 12, pytest.param(30, marks=pytest.mark.slow)])
def test_any_number_of_domains(fake_run: MakeRun, count: int) -> None:
    run = fake_run(domains=[f"domain-{index}" for index in range(count)])
    run.metrics("prune", total_steps=100, every=20)
    figures = report(run).figures()
    for index in range(count):
        assert line_of(figures["run1-ratio"], f"line-domain-{index}") is not None


def test_a_run_that_has_just_begun(fake_run: MakeRun) -> None:
    run = fake_run()
    run.recipe()
    run.metrics("prune", total_steps=400, every=25, until=0)
    page = report(run)
    assert "not complete: last record at step 0" in page.text
    assert "run1-perplexity" in page.figures()
    assert "run1-excess" not in page.figures()


def test_only_continued_pretraining(fake_run: MakeRun) -> None:
    run = fake_run()
    run.metrics("pretrain", total_steps=100, every=20, until=60)
    page = report(run)
    assert "continued pretraining" in page.text
    assert {"run1-overview", "run1-ratio"} <= page.figures().keys()
    assert {"run1-sparsity", "run1-plan"}.isdisjoint({*page.figures(), *page.ids})


def test_numbers_that_are_not_known(fake_run: MakeRun) -> None:
    runs = [fake_run("one"), fake_run("two")]
    for run in runs:
        point = run.evaluation_point("prune", 0, 100, run.share, run.share)
        later = run.evaluation_point("prune", 50, 100, run.share, run.share)
        unknown = dict.fromkeys(run.domains)
        names = ("loss", "ratio", "reference_ratio", "realised_share", "excess", "explanation")
        run.append(point | dict.fromkeys(names, unknown), later | {"ratio": unknown})
    assert "comparison-prune" in report(*runs).figures()
    first = fake_run("three")
    first.append(point | dict.fromkeys(names, unknown))
    first.evaluations("source")
    assert report(first).figures() == {}


def test_only_steps(fake_run: MakeRun) -> None:
    run = fake_run()
    run.append(run.start("prune", 100), run.step("prune", 10, 100))
    assert set(report(run).figures()) == {
        "run1-training-loss",
        "run1-throughput",
        "run1-sparsity",
    }


def test_only_evaluations(fake_run: MakeRun) -> None:
    run = fake_run()
    run.evaluations("source")
    page = report(run)
    assert page.figures() == {}
    assert "results-table" in page.ids


def test_only_the_plan(fake_run: MakeRun) -> None:
    run = fake_run()
    run.plan()
    run.similarity()
    page = report(run)
    assert set(page.figures()) == {"run1-mask-convergence"}
    assert "run1-shapes" in page.ids


def test_nothing_to_show_names_the_files(fake_run: MakeRun) -> None:
    run = fake_run()
    run.recipe()
    with pytest.raises(BadInput, match=r"metrics\.jsonl.*evaluation/\*\.json"):
        write_report([run.folder])
    assert not (run.folder / "report.html").exists()
    with pytest.raises(BadInput, match="at least one"):
        write_report([])


def test_same_files_give_the_same_page(fake_run: MakeRun, tmp_path: Path) -> None:
    run = fake_run()
    run.metrics("pretrain", total_steps=20, every=20)
    one = write_report([run.folder])
    again = write_report([run.folder], tmp_path / "new" / "again.html")
    assert again.read_text(encoding="utf-8") == one.read_text(encoding="utf-8")
    assert [path.name for path in again.parent.iterdir()] == ["again.html"]


def test_labels_tell_runs_apart(fake_run: MakeRun) -> None:
    runs = [load_run(fake_run(name).folder) for name in ("a/x", "b/x")]
    assert run_labels(runs) == ["a/x", "b/x"]
    assert run_labels(runs[:1]) == ["x"]
    assert len(set(run_labels([runs[0], runs[0]]))) == 2


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert ranges([]) == ""


def test_import_is_light() -> None:
    code = (
        "import sys, drpruning.report;"
        "print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_place_that_cannot_be_written_is_named_and_left_alone(
    complete_run: Any, tmp_path: Path
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "folder.html", tmp_path / "file" / "report.html"):
        with pytest.raises(BadInput, match=re.escape(f"--output {place}")):
            write_report([complete_run.folder], place)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.html", "file"}
    assert not list((tmp_path / "folder.html").iterdir())


def test_a_page_that_fails_at_last_leaves_the_one_before(
    complete_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_report([complete_run.folder], tmp_path / "report.html")
    before = output.read_bytes()

    def full(path: Path, _: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("drpruning.report.page.atomic_write", full)
    with pytest.raises(BadInput, match="No space left on device"):
        write_report([complete_run.folder], output)
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]
