"""`drprune watch` as a user meets it: once, live on a terminal, interrupted, refused."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from drpruning.cli import watch as command
from drpruning.cli.commands import app
from helpers.base_install import without_extras
from helpers.fake_run import FakeRun

runner = CliRunner()


def begun(folder: Path) -> FakeRun:
    run = FakeRun(folder)
    run.recipe()
    (folder / "sessions.jsonl").write_text('{"time": 990.0}\n')
    (folder / ".lock").touch()
    run.metrics("prune", total_steps=400, every=20, until=100)
    return run


def finish(run: FakeRun) -> None:
    run.metrics("prune", total_steps=400, every=20)
    run.metrics("pretrain", total_steps=800, every=50)
    (run.folder / "model").mkdir()


def live(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> io.StringIO:
    """A terminal, on which these things happen between one look and the next."""
    out, following = io.StringIO(), iter(events)
    console = Console(
        file=out, force_terminal=True, width=80, height=30, _environ={"TERM": "xterm"}
    )
    monkeypatch.setattr(command, "plain_console", lambda: console)
    monkeypatch.setattr(command.time, "sleep", lambda _: next(following)())
    return out


def interrupt() -> None:
    raise KeyboardInterrupt


def test_it_is_printed_once_if_asked_or_where_there_is_no_terminal(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    for arguments in (["--once"], []):
        result = runner.invoke(app, ["watch", str(run.folder), *arguments])
        assert result.exit_code == 0
        assert result.stdout.count("100/400") == 1
        assert "\x1b" not in result.stdout


def test_live_it_waits_follows_and_leaves_when_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    runs: list[FakeRun] = []
    out = live(
        monkeypatch, lambda: runs.append(begun(folder)), lambda: None, lambda: finish(runs[0])
    )
    result = runner.invoke(app, ["watch", str(folder), "--every", "5"])
    assert result.exit_code == 0, result.output
    text = out.getvalue()
    assert text.index("no run has begun") < text.index("100/400") < text.index("800/800")
    last = text[text.rindex("\x1b[?1049l") :]
    assert "finished" in last, "the last view stays when the other screen is left"
    assert "800/800" in last


def test_ctrl_c_leaves_the_last_view_and_a_usable_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    out = live(monkeypatch, lambda: None, interrupt)
    result = runner.invoke(app, ["watch", str(run.folder)])
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    text = out.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "100/400" in text[text.rindex("\x1b[?1049l") :]
    after = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert after == before, "it only reads"


def test_a_folder_that_is_removed_while_it_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run")
    live(monkeypatch, lambda: shutil.rmtree(run.folder))
    result = runner.invoke(app, ["watch", str(run.folder)])
    assert result.exit_code == 2
    assert "the run folder has been removed or moved" in result.stderr


def test_it_works_without_the_extras(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    arguments = ["watch", "--once", str(run.folder)]
    done = without_extras(f"from drpruning.cli.commands import app\napp({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert "100/400" in done.stdout
