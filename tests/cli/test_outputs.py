"""No command writes over anything but what it wrote itself."""

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.report import write_report
from helpers.fake_run import FakeRun
from helpers.logged_run import LoggedRun

runner = CliRunner()
COMMANDS = {
    "report": "page.html",
    "replay": "page.html",
    "replay json": "numbers.json",
    "export-schedule": "start.yaml",
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LoggedRun(tmp_path_factory.mktemp("run") / "run", ("prune", "pretrain")).folder


def write(command: str, run_folder: Path, place: Path) -> tuple[int, str]:
    name = command.split(maxsplit=1)[0]
    result = runner.invoke(app, [name, str(run_folder), "--output", str(place)])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.stderr.split())


def others() -> dict[str, str]:
    """What somebody may have in the place of each command, apart from its own files."""
    return {
        "recipe": "model: {source: x}\noutput: out\n",
        "config": json.dumps({"model_type": "llama"}),
        "page": '<!DOCTYPE html>\n<html lang="en"><head><title>mine</title></head></html>',
        "quoted": "<html><p>&lt;meta name='generator' content='drpruning 0.1.0 report'></html>",
        "list": "[]",
        "comment": "# ratio: {web: 1.0}\n",
        "empty": "",
        "binary": "\x00\x01",
        "deep": "[" * 5000,
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_files_of_the_user_stay(command: str, run_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / COMMANDS[command]
    for name, content in others().items():
        place.write_text(content)
        status, message = write(command, run_folder, place)
        assert (status, place.read_text()) == (2, content), name
        assert f"--output {place}: exists and was not written by this command" in message, name
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_regular_file_stays(command: str, run_folder: Path, tmp_path: Path) -> None:
    place, target = tmp_path / COMMANDS[command], tmp_path / "mine"
    os.mkfifo(place)
    status, message = write(command, run_folder, place)
    assert status == 2
    assert f"--output {place}: exists and is no regular file" in message
    assert stat.S_ISFIFO(place.lstat().st_mode)
    place.unlink()

    place.mkdir()
    assert write(command, run_folder, place)[0] == 2
    place.rmdir()

    place.symlink_to(target)
    for exists in (False, True):
        if exists:  # even where the link leads to a file of the command's own
            assert write(command, run_folder, tmp_path / f"x{COMMANDS[command]}")[0] == 0
            (tmp_path / f"x{COMMANDS[command]}").rename(target)
        before = target.read_bytes() if exists else None
        status, message = write(command, run_folder, place)
        assert status == 2
        assert f"--output {place}: is a symbolic link" in message
        assert place.is_symlink()
        assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_own_files_are_replaced(command: str, run_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / COMMANDS[command]
    for _ in range(2):
        assert write(command, run_folder, place)[0] == 0
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_page_of_another_kind_stays(run_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    for first, second in (("report", "replay"), ("replay", "report")):
        assert write(first, run_folder, place)[0] == 0
        before = place.read_bytes()
        assert write(second, run_folder, place)[0] == 2
        assert place.read_bytes() == before
        place.unlink()


def test_nothing_is_written_through_a_link_in_the_place_of_a_draft(
    run_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".page.html.partial").symlink_to(mine)
    (tmp_path / ".start.yaml.partial").symlink_to(tmp_path / "nowhere")
    for command in ("report", "export-schedule"):
        assert write(command, run_folder, tmp_path / COMMANDS[command])[0] == 0
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_every_file_is_checked_before_one_is_written(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{}")
    arguments = [f"--output={tmp_path / name}" for name in ("a.json", "b.json")]
    assert runner.invoke(app, ["replay", str(run_folder), *arguments]).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_report_of_an_older_version_is_replaced_in_its_run_alone(tmp_path: Path) -> None:
    """Version 0.1.0 wrote no mark: its pages are known by how they begin, where runs have them."""
    folder = FakeRun(tmp_path / "run").everything().folder
    marked = write_report([folder]).read_text()
    lines = marked.splitlines(keepends=True)
    (mark,) = [line for line in lines if 'name="generator"' in line]
    old = marked.replace(mark, "")
    kept = tmp_path / "kept.html"
    for place in (folder / "report.html", kept):
        place.write_text(old)
    assert write_report([folder]).read_text() == marked
    assert write("report", folder, kept)[0] == 2
    assert kept.read_text() == old
    (folder / "report.html").write_text("<html>mine</html>")
    result = runner.invoke(app, ["report", str(folder)])
    assert result.exit_code == 2
    assert (folder / "report.html").read_text() == "<html>mine</html>"


def test_the_demo_writes_into_a_folder_of_its_own_alone(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    own = tmp_path / "text" / "code.jsonl"
    own.write_text('{"text": "mine"}\n')
    result = runner.invoke(app, ["demo", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not empty and holds no demo" in " ".join(result.stderr.split())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]
    assert own.read_text() == '{"text": "mine"}\n'
