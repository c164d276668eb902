"""A run folder of which something is damaged or gone: one line, or the run continues without it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from drpruning.cli.app import FAILED
from drpruning.common.errors import BadInput
from drpruning.models import result
from drpruning.training.trainer import Trainer
from helpers.file_faults import content, cut, flip
from helpers.small_runs import drprune, logged, run, write
from helpers.warned import warned


@pytest.fixture
def values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """Four steps of each phase, a checkpoint after every second."""
    for phase in ("prune", "pretrain"):
        recipe_values[phase]["steps"] = 4
    recipe_values["training"]["checkpoint"] = {"every_steps": 2}
    return recipe_values


class Killed(Exception):  # noqa: N818
    """Stands for the process ending with nothing saved."""


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], str, int], Path]:
    """Runs a recipe up to a step of a phase."""

    def until(values: dict[str, Any], phase: str, step: int) -> Path:
        plain_step = Trainer._train_step

        def dying(self: Trainer) -> None:
            if (self.phase, self.step) == (phase, step):
                raise Killed
            plain_step(self)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_train_step", dying)
            with pytest.raises(Killed):
                run(values, "prune", "pretrain")
        return Path(values["output"])

    return until


Dies = Callable[[dict[str, Any], str, int], Path]


def deep(file: Path) -> None:
    file.write_text("[" * 100_000)


def with_another_place(file: Path) -> None:
    schedule = json.loads(file.read_text())
    schedule["mixture"]["cursors"][0] += 1
    file.write_text(json.dumps(schedule))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "is missing"),
        (cut, "is damaged"),
        (lambda file: flip(file, 0), "is damaged"),
        (lambda file: file.write_text("{}"), "is damaged"),
        (deep, "is damaged"),
        (with_another_place, r"is damaged \(does not match its checksum\)"),
    ],
    ids=["gone", "torn", "flipped", "empty", "deep", "altered"],
)
def test_schedule_is_needed_to_begin_the_second_phase_only(
    values: dict[str, Any], dies: Dies, spoil: Callable[[Path], None], words: str
) -> None:
    folder = dies(values, "pretrain", 1)
    shutil.copytree(folder, folder.with_name("kept"))
    spoil(folder / "prune" / "schedule.json")
    before = content(folder / "pruned")
    with pytest.raises(
        BadInput, match=rf"schedule\.json {words}.*; put it back, or remove .*pruned"
    ):
        run(values, "pretrain")
    assert content(folder / "pruned") == before
    if words == "is missing":
        shutil.rmtree(folder)
        shutil.move(folder.with_name("kept"), folder)
        assert dies(values, "pretrain", 3) == folder
        spoil(folder / "prune" / "schedule.json")
        assert logged(run(values, "pretrain"))[-1]["kind"] == "end"


def test_damaged_lines_cost_these_lines_alone(
    values: dict[str, Any], dies: Dies, caplog: pytest.LogCaptureFixture
) -> None:
    folder = dies(values, "prune", 3)
    for file in (folder / "metrics.jsonl", folder / "prune" / "plans.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        assert len(lines) > 1
        file.write_bytes(b"\xff" + lines[0][1:] + b"".join(lines[1:]))
    run(values, "prune", "pretrain")
    said = "\n".join(warned(caplog))
    assert "plans.jsonl has lost plans from before step 2" in said
    assert "metrics.jsonl has lost lines from before step 2" in said
    similarity = json.loads((folder / "prune" / "similarity.json").read_text())
    assert [row["step"] for row in similarity["rows"]] == [2, 4]
    assert json.loads((folder / "metrics.jsonl").read_bytes().splitlines()[-1])["kind"] == "end"


def test_cut_model_may_be_removed_once_it_is_recovered(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(values, "prune", "pretrain")
    shutil.rmtree(folder / "pruned")
    before = content(folder)
    capsys.readouterr()
    run(values, "prune", "pretrain")
    assert f"prune: done already ({folder / 'model'})" in capsys.readouterr().out
    after = content(folder)
    assert after.pop("sessions.jsonl") != before.pop("sessions.jsonl")
    assert after == before


@pytest.mark.parametrize("what", ["run", "checkpoints"])
def test_folder_that_vanishes(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    folder, plain_step = Path(values["output"]), Trainer._train_step

    def vanishing(self: Trainer) -> None:
        if (self.phase, self.step) == ("pretrain", 2):
            shutil.rmtree(folder if what == "run" else folder / "checkpoints")
        plain_step(self)

    monkeypatch.setattr(Trainer, "_train_step", vanishing)
    recipe = write(values, tmp_path / "recipe.yaml")
    if what == "checkpoints":
        drprune("run", recipe)
        assert (folder / "model").is_dir()
        return
    said = drprune("run", recipe, status=FAILED)
    assert "metrics.jsonl cannot be written: No such file or directory; what was saved" in said
    assert not folder.exists()


def test_full_disk_while_the_model_is_written(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, folder = write(values, tmp_path / "recipe.yaml"), Path(values["output"])

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(result, "save_file", full)
        said = drprune("run", recipe, status=FAILED)
    assert f"prune 4: the model cannot be written to {folder / 'pruned'} (No space left" in said
    assert "the latest checkpoint is of step 4: make room on the disk" in said
    assert not (folder / "pruned").exists()
    assert not list(folder.glob(".*.partial"))
    drprune("run", recipe)
    assert (folder / "model").is_dir()
