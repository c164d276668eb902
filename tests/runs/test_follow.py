"""Following a run folder while it grows: nothing is lost, nothing read twice, no state misread."""

import json
import os
from pathlib import Path

import pytest

from drpruning.common import files
from drpruning.common.errors import BadInput
from drpruning.common.files import folder_lock, is_locked
from drpruning.runs.follow import (
    AppendedLines,
    FolderFollower,
    RunFollower,
    RunState,
    current_state,
)
from drpruning.runs.records import load_phases
from helpers.fake_run import FakeRun

RECORDED = Path(__file__).parent / "recorded_run"
STEP_SECONDS, EVALUATION_SECONDS = 16 * 256 / 4000, 2.02
"""Of a run of `FakeRun`."""


def same(state: RunState, folder: Path) -> bool:
    return repr(state.record.phases) == repr(load_phases(folder).phases)  # NaN is in them


def begun(run: FakeRun) -> FakeRun:
    run.recipe()
    (run.folder / "sessions.jsonl").write_text('{"time": 990.0, "command": "drprune run"}\n')
    (run.folder / ".lock").touch()
    return run


def test_a_line_is_given_once_and_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "log"
    lines = AppendedLines(file)
    assert lines.read_new() == (False, [])
    for text, found in ((b"a\nb", [b"a"]), (b"", []), (b"c\n\nd\n", [b"bc", b"", b"d"])):
        with file.open("ab") as log:
            log.write(text)
        assert lines.read_new() == (False, found)


@pytest.mark.parametrize("later", [b"a\n", b"a\nx\n", b"a\nx\ny\nz\n", b"", b"bb\nbb\nbb\n"])
def test_a_file_that_was_cut_back_or_replaced_is_read_again(later: bytes, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"a\nb\nc\n")
    lines = AppendedLines(file)
    lines.read_new()
    file.write_bytes(later)
    assert lines.read_new() == (True, later.split(b"\n")[:-1])
    assert lines.read_new() == (False, [])


def test_at_every_length_the_state_is_that_of_the_file(tmp_path: Path) -> None:
    log = (RECORDED / "metrics.jsonl").read_bytes()
    follower, file = RunFollower(tmp_path), tmp_path / "metrics.jsonl"
    for size in (*range(0, len(log), 1999), len(log)):
        file.write_bytes(log[:size])
        assert same(follower.read(), tmp_path), size
    resumed_at = log[: log.index(b"\n", len(log) // 2) + 1]
    for rest in (b"", log[len(resumed_at) :].replace(b'"loss": ', b'"loss":  ')):
        file.write_bytes(resumed_at + rest)
        assert same(follower.read(), tmp_path)


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first, *rest = (RECORDED / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    file.write_bytes(first + b"".join(rest[:5]))
    follower = RunFollower(tmp_path)
    before = repr(follower.read().record.phases)
    file.write_bytes(b"x" * (len(first) - 1) + b"\n" + b"".join(rest[:5]))
    assert repr(follower.read().record.phases) == before


def test_a_line_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    run.metrics("prune", total_steps=100, every=20, until=40)
    follower = RunFollower(run.folder)
    count = len((run.folder / "metrics.jsonl").read_text().splitlines())
    follower.read()
    with (run.folder / "metrics.jsonl").open("a") as log:
        log.write("{not json}\n")
    for _ in range(2):
        with pytest.raises(BadInput, match=rf"metrics\.jsonl, line {count + 1}: not a JSON"):
            follower.read()


def test_time_left_counts_steps_and_evaluations(tmp_path: Path) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    values = run.folder / "recipe.yaml"
    values.write_text(
        values.read_text()
        .replace("steps: 400", "steps: 400\n  evaluate_every: 50\n  global_batch: 16")
        .replace("steps: 800", "steps: 800\n  evaluate_every: 100\n  global_batch: 32")
    )
    run.metrics("prune", total_steps=400, every=50, until=120)
    state = RunFollower(run.folder).read()
    progress, whole = state.progress(), state.run_progress()
    assert progress is not None
    assert progress.seconds_left == pytest.approx(280 * STEP_SECONDS + 6 * EVALUATION_SECONDS)
    assert (progress.done, progress.total, whole.done, whole.total) == (120, 400, 120, 1200)
    pretrain = 800 * 2 * STEP_SECONDS + 8 * EVALUATION_SECONDS
    assert whole.seconds_left == pytest.approx(progress.seconds_left + pretrain)


def test_a_phase_that_ended_early_is_complete(tmp_path: Path) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    run.metrics("prune", total_steps=400, every=20, until=200)
    end = {"kind": "end", "phase": "prune", "step": 200, "time": 1200.0, "total_seconds": 200.0}
    run.append(end | {"tokens": 1, "stopped": "the plan is stable"})
    run.metrics("pretrain", total_steps=800, every=50, until=400)
    whole = RunFollower(run.folder).read().run_progress()
    assert (whole.done, whole.total) == (600, 1000)


def test_silence_is_what_is_long_for_this_run(tmp_path: Path) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    run.metrics("prune", total_steps=400, every=20, until=100)
    state = RunFollower(run.folder).read()
    assert state.silence(1100.0 + 119) is None
    assert state.silence(1100.0 + 121) == 121
    run.append({**run.step("prune", 110, 400), "time": 2100.0})
    state = RunFollower(run.folder).read()
    assert state.silence(2100.0 + 2000) is None, "a line has taken 1,000 seconds before"
    assert state.silence(2100.0 + 3001) == 3001


def test_the_status_follows_a_run_from_before_its_start_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    follower = FolderFollower(folder)
    assert current_state(follower.read()).status == "waiting"
    folder.mkdir()
    with folder_lock(folder, "taken"):
        assert current_state(follower.read()).status == "waiting", "data may be prepared first"
        run = begun(FakeRun(folder))
        assert current_state(follower.read()).status == "running"
        run.metrics("prune", total_steps=400, every=20)
    assert current_state(follower.read()).status == "stopped"
    with folder_lock(folder, "taken"):
        run.metrics("pretrain", total_steps=800, every=50)
        (folder / "model").mkdir()
        assert current_state(follower.read()).status == "running", "evaluation follows"
    (state,) = follower.read()
    assert (state.status, state.result) == ("finished", folder / "model")


def test_a_run_whose_lock_cannot_be_seen_is_not_called_stopped(tmp_path: Path) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    run.metrics("prune", total_steps=400, every=20, until=100)
    follower = RunFollower(run.folder)
    assert follower.read().status == "stopped"
    run.append(run.step("prune", 110, 400))  # by a machine whose locks are unknown here
    assert [follower.read().status for _ in range(2)] == ["running", "running"]
    (run.folder / ".lock").unlink()
    assert RunFollower(run.folder).read().status == "running", "a copy has no lock"


def test_a_look_at_the_lock_does_not_keep_a_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    assert is_locked(tmp_path) is None
    (tmp_path / ".lock").touch()
    assert is_locked(tmp_path) is False
    with (tmp_path / ".lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert is_locked(tmp_path) is False, "so may two look at once"
        monkeypatch.setattr(files.time, "sleep", lambda _: fcntl.flock(other, fcntl.LOCK_UN))
        with folder_lock(tmp_path, "taken"):
            assert is_locked(tmp_path) is True
    assert is_locked(tmp_path) is False


def test_the_losses_of_the_source_come_from_its_evaluation_or_the_first_step(
    tmp_path: Path,
) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    assert RunFollower(run.folder).read().source_loss == {}
    run.metrics("prune", total_steps=400, every=20, until=100)
    follower = RunFollower(run.folder)
    first = load_phases(run.folder).phases["prune"].evals[0].loss
    assert follower.read().source_loss == first
    run.evaluations("source")
    evaluated = json.loads((run.folder / "evaluation" / "source.json").read_text())["loss"]
    assert follower.read().source_loss == evaluated
    (run.folder / "evaluation" / "source.json").write_text("{")
    assert follower.read().source_loss == first


def test_the_latest_checkpoint_is_the_last_one_of_the_last_phase(tmp_path: Path) -> None:
    run = begun(FakeRun(tmp_path / "run"))
    assert RunFollower(run.folder).read().checkpoint is None
    for name in ("prune-400", "pretrain-90", "pretrain-100", ".pretrain-110.partial", "other"):
        (run.folder / "checkpoints" / name).mkdir(parents=True)
    os.utime(run.folder / "checkpoints" / "pretrain-100", (5000, 5000))
    saved = RunFollower(run.folder).read().checkpoint
    assert saved is not None
    assert (saved.phase, saved.step, saved.time) == ("pretrain", 100, 5000)


def test_targets_are_followed_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    whole = begun(FakeRun(folder))
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  target:", "  targets:\n   big:"))
    recipe.write_text(recipe.read_text().replace("data:", "   small: {num_layers: 2}\ndata:", 1))
    follower = FolderFollower(folder)
    assert [state.status for state in follower.read()] == ["waiting", "waiting"]
    big = begun(FakeRun(folder / "big"))
    big.metrics("prune", total_steps=400, every=20, until=100)
    states = follower.read()
    assert [state.status for state in states] == ["stopped", "waiting"]
    assert current_state(states).record.folder == folder / "big"
    assert [state.run_progress().total for state in states] == [1200, 1200]
    begun(FakeRun(folder / "small"))
    assert current_state(follower.read()).record.folder == folder / "small"
    assert whole.folder == folder
