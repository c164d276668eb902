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
