"""Numbers at the limits of what a number can be, and what matplotlib says of them."""

import json
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from parsed_page import report
from test_table import printed
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.report import results_table
from drpruning.report.drawing import style
from drpruning.runs.records import load_run

MakeRun = Callable[..., Any]
EXTREMES = [
    1.7e308,
    5e-324,
    *(pytest.param(number, marks=pytest.mark.slow) for number in (-1e308, 1e30, 1e31, 0.0)),
]


def extreme(value: Any, number: float) -> Any:
    """The same record with this number in place of every other one but steps and counts."""
    if isinstance(value, dict):
        return {key: extreme(inner, number) for key, inner in value.items()}
    return number if isinstance(value, float) else value


@pytest.mark.parametrize("number", EXTREMES)
def test_a_report_holds_any_number(fake_run: MakeRun, number: float) -> None:
    runs = [fake_run("one", ["a", "b"]), fake_run("two", ["a", "b"])]
    for run in runs:
        run.recipe()
        run.metrics("prune", total_steps=30, every=10)
        run.evaluations()
        file = run.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        changed = [extreme(line, number) if i % 2 else line for i, line in enumerate(lines)]
        file.write_text("".join(json.dumps(line) + "\n" for line in changed))
        for file in (run.folder / "evaluation").glob("*.json"):
            file.write_text(json.dumps(extreme(json.loads(file.read_text()), number)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = report(*runs)
    assert "run1-training-loss" in page.figures()
    assert not any(len(word) > 60 for row in page.cells("run1-prune-updates") for word in row)
    table = printed(results_table([load_run(run.folder) for run in runs]), width=200)
    assert max(map(len, table.splitlines())) <= 200


@pytest.mark.parametrize("number", EXTREMES)
def test_replay_and_export_end_with_a_message_or_a_result(fake_run: MakeRun, number: float) -> None:
    run = fake_run("one", ["a", "b"])
    run.recipe()
    run.metrics("pretrain", total_steps=40, every=10)
    file = run.folder / "metrics.jsonl"
    lines = [extreme(json.loads(line), number) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for arguments in (
        ["replay", str(run.folder), "--output", str(run.folder / "replay.html")],
        ["export-schedule", str(run.folder)],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in {0, 2}, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_what_matplotlib_says_is_not_said_to_people(
    fake_run: MakeRun, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = logging.getLogger("matplotlib").level
    run = fake_run("run", ["中文", "\U0001f600", "e\u0301 \x07"])
    run.metrics("prune", total_steps=30, every=10)
    assert "run1-ratio" in report(run).figures()
    with style():
        warnings.warn("Tight layout not applied", stacklevel=1)
        logging.getLogger("matplotlib.font_manager").warning("findfont: Font family not found")
    assert caplog.records == []
    assert [str(w.message) for w in recwarn if "matplotlib" in w.filename] == []
    assert capfd.readouterr().err == ""
    assert logging.getLogger("matplotlib").level == before


def test_shares_of_infinite_numbers_are_not_drawn(fake_run: MakeRun) -> None:
    run = fake_run("run", ["a", "b"])
    point = run.evaluation_point("prune", 0, 100, run.share, run.share)
    run.append(point | {"loss": {"a": math.inf, "b": -math.inf}, "ratio": {"a": 1e300, "b": 0.0}})
    assert "run1-perplexity" not in report(run).figures()
