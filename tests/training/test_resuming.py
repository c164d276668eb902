"""Resumed runs: after damage and full disks, with another recipe, on other data."""

import copy
import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from drpruning.cli.app import FAILED
from drpruning.common.errors import BadInput, Interrupted, TrainingError
from drpruning.runs.log import JsonLines
from drpruning.training import checkpoint as checkpoint_module
from drpruning.training import phases
from drpruning.training import trainer as loop_module
from drpruning.training.checkpoint import list_checkpoints, read_state
from drpruning.training.objective import LanguageModelling, Losses
from drpruning.training.rows import Rows
from drpruning.training.signals import InterruptGuard
from drpruning.training.trainer import Trainer
from helpers.file_faults import FULL, content, cut, failing
from helpers.interrupted_runs import assert_same_outcome, run_until
from helpers.small_runs import drprune, logged, only_pretraining, renamed, run, write
from helpers.warned import warned


@pytest.fixture
def values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """Eight steps of continued pretraining, a checkpoint after every second."""
    values = only_pretraining(recipe_values)
    values["pretrain"].update(steps=8)
    values["training"]["checkpoint"] = {"every_steps": 2, "keep": 3}
    return values


def test_torn_checkpoint_costs_the_steps_since_the_one_before(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run(renamed(values, "whole"), "pretrain")
    folder = run_until(renamed(values, "torn"), 7, monkeypatch)
    (file,) = (folder / "checkpoints" / "pretrain-00000006").glob("*.safetensors")
    cut(file)
    said = drprune("pretrain", write(renamed(values, "torn"), tmp_path / "torn.yaml"))
    assert f"warning: checkpoint pretrain-00000006 is passed over: {file.name} has" in said
    assert "resuming from step 4" in said
    assert_same_outcome(folder, whole)


def test_without_a_teacher_state_and_log_are_those_of_versions_that_knew_none(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of such a version is resumed, and the logged loss is the same to the bit."""
    values["pretrain"].update(steps=4, global_batch=6)
    values["training"].update(micro_batch=4, log_every=1)
    plain, parts = LanguageModelling.losses, []

    def spied(
        self: LanguageModelling, model: Any, rows: Rows, *arguments: Any, **more: Any
    ) -> Losses:
        found = plain(self, model, rows, *arguments, **more)
        parts.append(found.total.item())  # rounded to float32
        return found

    monkeypatch.setattr(LanguageModelling, "losses", spied)
    folder = run_until(values, 3, monkeypatch)
    state = read_state(folder / "checkpoints" / "pretrain-00000002")
    assert "divergence" not in state
    losses = [r["loss"] for r in logged(folder) if r["kind"] == "step"]
    assert losses == [parts[i] + parts[i + 1] for i in (0, 2, 4)]


def test_full_disk_in_a_run_is_one_line(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(renamed(values, "whole"), "pretrain")
    plain_manifest, calls = checkpoint_module.write_manifest, []

    def full_at_first(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise FULL
        plain_manifest(*arguments)

    monkeypatch.setattr(checkpoint_module, "write_manifest", full_at_first)
    folder = run(renamed(values, "full"), "pretrain")
    (said,) = (line for line in warned(caplog) if line.startswith("pretrain 4"))
    assert "pretrain 4: no checkpoint could be saved" in said
    assert "No space left on device" in said
    assert len(calls) == 4
    assert_same_outcome(folder, whole)


DENIED = PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("error", "remedy"), [(FULL, "make room"), (DENIED, "let this user write to")]
)
def test_last_checkpoint_that_cannot_be_saved_does_not_cost_the_model(
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
    remedy: str,
) -> None:
    whole = run(renamed(values, "whole"), "pretrain")
    fail_after(4, error, monkeypatch)
    folder = run(renamed(values, "failing"), "pretrain")
    last = warned(caplog)[-1]
    assert f"pretrain 8: no checkpoint could be saved ({error.strerror}); {remedy}" in last
    assert_same_outcome(folder, whole)


def fail_after(step: int, error: OSError, patch: pytest.MonkeyPatch) -> None:
    """No checkpoint after this step can be saved."""
    plain_manifest = checkpoint_module.write_manifest

    def failing_later(folder: Path, header: Mapping[str, Any]) -> None:
        if header["step"] > step:
            raise error
        plain_manifest(folder, header)

    patch.setattr(checkpoint_module, "write_manifest", failing_later)


def test_checkpoint_and_model_that_cannot_be_written_end_the_run_which_then_resumes(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run(renamed(values, "whole"), "pretrain")
    recipe = write(renamed(values, "denied"), tmp_path / "denied.yaml")

    def denied(*_: Any, **__: Any) -> None:
        raise DENIED

    with monkeypatch.context() as patch:
        fail_after(4, DENIED, patch)
        patch.setattr(phases, "save_model", denied)
        said = drprune("pretrain", recipe, status=FAILED)
    folder = Path(renamed(values, "denied")["output"])
    assert f"pretrain 8: the model cannot be written to {folder / 'model'}" in said
    assert "Permission denied" in said
    assert "the latest checkpoint is of step 4: let this user write to" in said
    assert not (folder / "model").exists()
    drprune("pretrain", recipe)
    assert_same_outcome(folder, whole)


def test_signal_after_which_nothing_can_be_saved_is_an_error(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(4, FULL, monkeypatch)
    plain_step = Trainer._train_step

    def signalled(self: Trainer) -> None:
        plain_step(self)
        if self.step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", signalled)
    with pytest.raises(TrainingError, match=r"pretrain 5: .*No space.* step 4: make room"):
        run(values, "pretrain")


@contextmanager
def signals_while_saving(
    monkeypatch: pytest.MonkeyPatch, step: int, *numbers: signal.Signals
) -> Iterator[None]:
    """In the block, the checkpoint of a step is interrupted by signals."""
    plain_write = loop_module.write_tensors

    def write_interrupted(folder: Path, *arguments: Any) -> None:
        plain_write(folder, *arguments)
        if f"{step:08d}" in folder.name:
            for number in numbers:
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "write_tensors", write_interrupted)
        yield


def test_second_signal_leaves_at_once_and_loses_nothing_saved(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(renamed(values, "whole"), "pretrain")
    signals = signals_while_saving(monkeypatch, 4, signal.SIGTERM, signal.SIGINT)
    with signals, pytest.raises(KeyboardInterrupt):
        run(renamed(values, "twice"), "pretrain")
    folder = Path(renamed(values, "twice")["output"])
    assert [p.name for p in list_checkpoints(folder / "checkpoints", "pretrain")] == [
        "pretrain-00000002"
    ]
    run(renamed(values, "twice"), "pretrain")
    assert_same_outcome(folder, whole)


def test_signal_while_the_last_checkpoint_is_saved_is_not_forgotten(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(renamed(values, "whole"), "pretrain")
    with signals_while_saving(monkeypatch, 8, signal.SIGTERM), pytest.raises(Interrupted):
        run(renamed(values, "late"), "pretrain")
    folder = Path(renamed(values, "late")["output"])
    assert list_checkpoints(folder / "checkpoints", "pretrain")[-1].name == "pretrain-00000008"
    assert not (folder / "model").exists()
    run(renamed(values, "late"), "pretrain")
    assert_same_outcome(folder, whole)


def test_first_signal_only_asks_and_the_second_acts() -> None:
    guard = InterruptGuard().__enter__()
    signal.raise_signal(signal.SIGINT)
    assert guard.requested
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted):
        guard.__exit__(None, None, None)
    before = signal.getsignal(signal.SIGTERM)
    with InterruptGuard():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_lines_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.write({"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        lines.write({"a": 2})
        lines.write({"a": 3})
        with pytest.raises(OSError, match="No space"):
            lines.size()
    lines.write({"a": 4})
    assert [record["a"] for record in lines.read()] == [1, 2, 3, 4]


def test_log_that_lost_lines_is_reported(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_until(values, 5, monkeypatch)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[: len(text) // 2])
    run(values, "pretrain")
    assert any("metrics.jsonl has lost lines from before step 4" in line for line in warned(caplog))
    assert logged(folder)[-1]["kind"] == "end"


# Another recipe, other data.


def test_data_exchanged_under_a_run_is_refused_unless_accepted(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_until(values, 5, monkeypatch)
    blocks = folder / "data" / "colours" / "train.bin"
    np.full(blocks.stat().st_size // 2, 3, dtype="<u2").tofile(blocks)
    before = content(folder / "checkpoints")
    with pytest.raises(BadInput, match=r"the train blocks of domain colours.*accept_changes"):
        run(values, "pretrain")
    assert content(folder / "checkpoints") == before
    values["training"]["checkpoint"]["accept_changes"] = True
    run(values, "pretrain")
    assert any(
        "in spite of changes: the train blocks of domain colours" in line for line in warned(caplog)
    )
    assert (folder / "model").is_dir()


def test_other_text_is_read_from_its_start(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = Path(shutil.copytree(values["data"]["root"], tmp_path / "text"))
    values["data"]["root"] = str(text)
    folder = run_until(values, 5, monkeypatch)
    lines = (text / "animals.jsonl").read_text().splitlines(keepends=True)
    (text / "animals.jsonl").write_text("".join(lines[:80]))
    shutil.rmtree(folder / "data")
    with pytest.raises(BadInput, match="blocks of domain animals"):
        run(values, "pretrain")
    values["training"]["checkpoint"]["accept_changes"] = True
    run(values, "pretrain")
    assert [r["step"] for r in logged(folder) if r["kind"] == "eval"] == [0, 2, 4, 6, 8]


def test_changed_recipe_is_refused_unless_accepted(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_until(values, 5, monkeypatch)
    values["pretrain"].update(learning_rate=5e-3, steps=10)
    with pytest.raises(BadInput, match=r"pretrain.steps \(saved 8, now 10\)"):
        run(values, "pretrain")
    begun = yaml.safe_load((folder / "recipe.yaml").read_text())
    begun["pretrain"].update(learning_rate=5e-3, steps=10)
    write(begun, folder / "recipe.yaml")  # what a hand did to it, the checkpoint shows
    with pytest.raises(BadInput, match=r"pretrain-00000004 was saved.*steps \(saved 8, now 10\)"):
        run(values, "pretrain")
    values["training"]["checkpoint"]["accept_changes"] = True
    run(values, "pretrain")
    assert any("learning_rate (saved 0.01, now 0.005)" in line for line in warned(caplog))
    assert logged(folder)[-1]["step"] == 10
    starts = [(line["step"], line["total_steps"]) for line in logged(folder)
              if line["kind"] == "start"]  # fmt: skip
    assert starts == [(0, 8), (4, 10)]
    warnings = [line for line in logged(folder) if line["kind"] == "warning"]
    assert [line["step"] for line in warnings] == [4]
    assert "learning_rate (saved 0.01, now 0.005)" in warnings[0]["message"]
    assert "- continued pretraining: 10 steps" in (folder / "model/README.md").read_text()


def test_fewer_steps_than_done_are_refused_and_the_recipe_stays(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_until(values, 5, monkeypatch)
    before = (folder / "recipe.yaml").read_text()
    changed = copy.deepcopy(values)
    changed["pretrain"]["steps"] = 3
    changed["training"]["checkpoint"]["accept_changes"] = True
    with pytest.raises(BadInput, match=r"pretrain.steps: 3, but .*has done 4"):
        run(changed, "pretrain")
    assert (folder / "recipe.yaml").read_text() == before, "what was refused was not run"
    run(values, "pretrain")
    assert logged(folder)[-1]["step"] == 8


def test_what_a_checkpoint_cannot_be_resumed_with_is_refused_by_plan(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values["scheduling"] = {"policy": "constant"}
    folder = run_until(values, 5, monkeypatch)
    before = (folder / "recipe.yaml").read_text()
    values["training"]["checkpoint"]["accept_changes"] = True
    other_policy, fewer_domains = copy.deepcopy(values), copy.deepcopy(values)
    other_policy["scheduling"] = {"policy": "group_dro"}
    fewer_domains["data"] |= {"prepared": str(tmp_path / "data"), "normalise_shares": True}
    fewer_domains["data"]["domains"]["animals"]["share"] = 0
    refusals = {
        "scheduling.policy (saved 'constant', now 'group_dro')": other_policy,
        "data.domains above share 0 (saved ['animals', 'colours', 'numbers'], "
        "now ['colours', 'numbers'])": fewer_domains,
    }
    for refusal, changed in refusals.items():
        recipe = write(changed, tmp_path / "changed.yaml")
        for command in ("plan", "run"):
            assert refusal in drprune(command, recipe, status=2)
        assert (folder / "recipe.yaml").read_text() == before


def test_other_shares_are_accepted_and_named(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_until(values, 5, monkeypatch)
    values["training"]["checkpoint"]["accept_changes"] = True
    for name, share in {"numbers": 0.5, "colours": 0.4}.items():
        values["data"]["domains"][name]["share"] = share
    run(values, "pretrain")
    (warning,) = (r for r in logged(folder) if r["kind"] == "warning" and r["step"] == 4)
    assert "data.domains.numbers.share (saved 0.6, now 0.5)" in warning["message"]


def test_another_model_is_never_accepted(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_until(values, 3, monkeypatch)
    shutil.copytree(values["model"]["source"], tmp_path / "other")
    values["model"]["source"] = str(tmp_path / "other")
    values["training"]["checkpoint"]["accept_changes"] = True
    with pytest.raises(BadInput, match=r"model\.source \(saved"):
        run(values, "pretrain")


# A disk that is really full.

IN_A_SMALL_DISK = 'mount -t tmpfs -o size=200k tmpfs "$1" && shift && exec "$@"'


@pytest.mark.slow
def test_disk_that_is_really_full(values: dict[str, Any], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    outside = ["unshare", "-rm", "sh", "-c", IN_A_SMALL_DISK, "sh", str(small)]
    if subprocess.run([*outside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    whole = run(renamed(values, "whole"), "pretrain")
    folder = run(values, "prepare")
    (folder / "checkpoints").symlink_to(small)
    recipe = write(values, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "drpruning.cli", "pretrain", str(recipe)]
    full = subprocess.run([*outside, *command], check=False, capture_output=True, text=True)
    assert full.returncode == 0, full.stderr
    assert full.stdout.count("no checkpoint could be saved (No space left on device)") == 4
    assert "Traceback" not in full.stderr
    assert not list(small.iterdir())
    assert_same_outcome(folder, whole)
