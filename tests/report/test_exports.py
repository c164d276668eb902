"""Figures and tables as files: complete, readable elsewhere, and nobody's files are replaced."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from parsed_page import Page
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.common.errors import BadInput
from drpruning.report import write_report
from drpruning.report.exports import LIST, as_csv, as_latex, check_folder

MakeRun = Callable[..., Any]


def test_every_figure_and_table_of_the_page_is_a_file(complete_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "files"
    text = write_report([complete_run.folder], tmp_path / "report.html", folder).read_text()
    page = Page(text)
    tables = {attrs["id"] for tag, attrs in page.tags if tag == "table"}
    wanted = {f"{name}.svg" for name in page.figures()}
    wanted |= {f"{name}.{kind}" for name in tables for kind in ("csv", "tex")} | {LIST}
    assert {path.name for path in folder.iterdir()} == wanted
    assert set((folder / LIST).read_text().split()) == wanted - {LIST}
    with (folder / "results-table.csv").open(newline="") as file:
        assert list(csv.reader(file)) == page.cells("results-table")
    for name in page.figures():
        figure = (folder / f"{name}.svg").read_text()
        root = ET.fromstring(figure)  # noqa: S314
        assert len([e for e in root.iter() if e.get("class") == "plot"]) >= 1
        assert not re.search(r"var\(|unit-nats|<script", figure)
        left, top, width, height = map(float, root.get("viewBox", "").split())
        for panel in (e for e in root if e.get("class") == "plot"):
            x, y, w, h = (float(panel.get(k, "nan")) for k in ("x", "y", "width", "height"))
            assert left <= x <= x + w <= width
            assert top <= y <= y + h <= height


@pytest.mark.slow
def test_figures_are_there_as_png_where_asked_for(fake_run: MakeRun, tmp_path: Path) -> None:
    from matplotlib.image import imread

    run = fake_run("one", ["web", "code"])
    run.recipe()
    run.metrics("pretrain", total_steps=40, every=20)
    run.evaluations()
    folder = tmp_path / "files"
    arguments = ["report", str(run.folder), "--figures", str(folder)]
    result = CliRunner().invoke(app, [*arguments, "--png"])
    assert result.exit_code == 0, result.output
    drawn = {path.stem: path for path in folder.glob("*.svg")}
    assert {path.stem for path in folder.glob("*.png")} == drawn.keys() != set()
    for name, svg in drawn.items():
        pixels = imread(folder / f"{name}.png")
        root = ET.fromstring(svg.read_text())  # noqa: S314
        for size, side in zip(pixels.shape, ("height", "width"), strict=False):
            assert size == pytest.approx(float(root.get(side, "nan")) * 200 / 72, abs=30)
        assert (pixels[0, 0] == 1).all(), "white"
        assert (pixels[..., :3] < 0.5).all(axis=-1).sum() > 300, "something is drawn in ink"

    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert list(folder.glob("*.png")) == [], "those of an earlier report are gone"
    result = CliRunner().invoke(app, ["report", str(run.folder), "--png"])
    assert result.exit_code == 2


def test_a_later_report_replaces_its_own_files_alone(fake_run: MakeRun, tmp_path: Path) -> None:
    run = fake_run()
    run.recipe()
    run.evaluations("source", "model")
    folder = tmp_path / "files"
    write_report([run.folder], figures=folder)
    (folder / "mine.txt").write_text("mine")
    (run.folder / "evaluation" / "source.json").unlink()
    (run.folder / "evaluation" / "model.json").unlink()
    run.plan()
    write_report([run.folder], figures=folder)
    assert {path.name for path in folder.glob("*.csv")} == {"run1-shapes.csv", "run1-layers.csv"}
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_folder_of_others_is_refused_before_anything_is_written(
    fake_run: MakeRun, tmp_path: Path
) -> None:
    run = fake_run()
    run.evaluations("source")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name, what in (("file", "this is a file"), ("full", "has other files in it")):
        result = CliRunner().invoke(
            app, ["report", str(run.folder), "--figures", str(tmp_path / name)]
        )
        assert result.exit_code == 2
        with pytest.raises(BadInput, match=what):
            check_folder(tmp_path / name)
    assert not (run.folder / "report.html").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_text_of_tables_is_escaped() -> None:
    rows = [["Domain", "a_b"], ["Group"], ["50% & <c>, \\d", "1.05×"]]
    assert as_latex(rows).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Domain & a\_b \\",
        r"\midrule",
        r"\midrule",
        r"\multicolumn{2}{l}{Group} \\",
        r"50\% \& <c>, \textbackslash{}d & 1.05$\times$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert list(csv.reader(as_csv(rows).splitlines())) == rows
