"""A second run to compare with, and the page of the first."""

import pytest

from drpruning.report import write_report
from helpers.fake_run import FakeRun


@pytest.fixture(scope="session")
def constant_run(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """The same under a constant ratio."""
    folder = tmp_path_factory.mktemp("runs") / "constant"
    return FakeRun(folder, policy="constant").everything()


@pytest.fixture(scope="session")
def page(complete_run: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the complete run."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([complete_run.folder], output).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page_of_several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of two runs with all that can be measured."""
    folder = tmp_path_factory.mktemp("several")
    runs = [FakeRun(folder / name, policy=name).everything() for name in ("drpruning", "constant")]
    for run in runs:
        run.intervals()
        for model in ("source", "pruned", "model"):
            run.score(model, "piqa", 0.5)
            run.score(model, "truthfulqa_mc2", 0.4)
    output = folder / "report.html"
    return write_report([run.folder for run in runs], output).read_text(encoding="utf-8")
