"""The divergence from a teacher on the page; nothing of it without distillation."""

import json
import math
from collections.abc import Callable
from typing import Any

from parsed_page import Page, line_of, points_of, report

from helpers.fake_run import FakeRun

MakeRun = Callable[..., Any]
FIGURE = "run1-divergence"


def distilled(
    run: FakeRun, *, teachers: dict[str, float | None], without: tuple[str, int] = ("", 0)
) -> FakeRun:
    """Let a teacher have taught the recovery: the divergence of domain i at a step is i + 100/step.

    Args:
        run: A run with its records.
        teachers: As a start names them.
        without: A domain that was not trained on before the evaluation at this step.
    """
    log = run.folder / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:
        if record["phase"] != "pretrain":
            continue
        if record["kind"] == "start":
            record["teachers"] = teachers
        if record["kind"] == "step":
            record["divergence"] = 1.5
        if record["kind"] == "eval":
            step = record["step"]
            record["divergence"] = {
                name: index + 100 / step
                for index, name in enumerate(run.domains)
                if step and (name, step) != without
            }
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_the_divergence_of_each_domain_is_drawn_and_tabled(fake_run: MakeRun) -> None:
    run = distilled(fake_run().everything(), teachers={"/models/base-8m": 8_507_648})
    page = report(run)
    figures = page.figures()
    assert {name for name in figures if "divergence" in name} == {FIGURE}
    assert line_of(figures[FIGURE], "line-web") is not None
    assert points_of(figures[FIGURE], "line-wiki") == 16
    assert "taught by base-8m of 8,507,648 parameters" in page.text
    head, *rows = page.cells("run1-pretrain-updates")
    assert head[-1] == "last divergence"
    assert [row[-1] for row in rows] == [f"{i + 0.125:.3f}" for i in range(len(run.domains))]
    assert "divergence" not in "".join(page.cells("run1-prune-updates")[0])


def test_without_distillation_the_page_says_nothing_of_it(page: str) -> None:
    assert "last divergence" not in page
    assert "teacher" not in page
    assert "taught by" not in page
    assert not any("divergence" in name for name in Page(page).figures())


def test_a_domain_without_training_keeps_its_latest_divergence(fake_run: MakeRun) -> None:
    run = distilled(fake_run().everything(), teachers={"a": 1}, without=("code", 800))
    page = report(run)
    assert points_of(page.figures()[FIGURE], "line-code") == 15
    assert page.cells("run1-pretrain-updates")[2][-1] == f"{1 + 100 / 750:.3f}"


def test_several_teachers_and_one_of_unknown_size(fake_run: MakeRun) -> None:
    run = distilled(fake_run().everything(), teachers={"x/<b>one</b>": 12_000, "two": None})
    text = report(run).text
    assert "taught by b&gt; of 12,000 parameters; taught by two;" in text
    run = distilled(fake_run("masked").everything(), teachers={"self": 5})
    assert "taught by the model itself without its masks of 5 parameters" in report(run).text


def test_runs_with_and_without_a_teacher_are_compared(
    fake_run: MakeRun, constant_run: FakeRun
) -> None:
    run = distilled(fake_run().everything(), teachers={"base-8m": 8_507_648})
    page = report(run, constant_run)
    figures = page.figures()
    assert "comparison-pretrain" in figures
    assert {name for name in figures if name.endswith("divergence")} == {FIGURE}
    assert page.cells("run2-pretrain-updates")[0][-1] == "last reference"


def test_a_divergence_that_is_not_finite_leaves_a_gap(fake_run: MakeRun) -> None:
    run = fake_run()
    for step, value in ((0, None), (50, {"web": 1.0}), (100, {"web": math.inf, "code": None})):
        point = run.evaluation_point("pretrain", step, 100, run.share, run.share)
        run.append(point | {"divergence": value})
    page = report(run)
    assert points_of(page.figures()[FIGURE], "line-web") == 1
