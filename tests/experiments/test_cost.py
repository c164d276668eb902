"""What scheduling costs, from run folders alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import cost
from helpers.small_runs import only_pretraining, run, write

BLOCKS, LENGTH = 8, 64


def record(kind: str, step: int, time: float, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "phase": "pretrain", "step": step, "time": time, **fields}


def evaluated(step: int, time: float, *, took: float, update: float) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("ratio", "reference_ratio", "reference_loss", "forecast", "excess", "data", "epochs")
    )
    return record(
        "eval", step, time, loss={"a": 1.0}, **empty, explanation={}, realised_share=None,
        used_up={}, parameters=10, evaluation_seconds=took, update_seconds=update,
    )  # fmt: skip


def trained(step: int, time: float, *, seconds: float, steps: int = 10) -> dict[str, Any]:
    return record(
        "step", step, time, loss=1.0, gradient_norm=1.0, skipped=0, learning_rate=1e-3, tokens=0,
        tokens_per_second=steps * BLOCKS * LENGTH / seconds,
    )  # fmt: skip


def run_folder(folder: Path, *, down: float = 0.0) -> Path:
    """20 steps, evaluated every 10, saved at step 15 and at the end, down before step 15."""
    start = record(
        "start", 0, 0.0, total_steps=20, global_batch=BLOCKS, sequence_length=LENGTH, parameters=10,
        final_parameters=10, versions={}, commit=None,
    )  # fmt: skip
    records = [
        start,
        evaluated(0, 3.0, took=2.0, update=0.5),
        trained(10, 14.0, seconds=10.0),  # 1 s of planning before it
        evaluated(10, 18.5, took=4.0, update=0.5),
        trained(15, 25.5 + down, seconds=6.0, steps=5),  # 1 s of planning
        trained(20, 34.0 + down, seconds=5.0, steps=5),  # 3.5 s of saving
        evaluated(20, 37.0 + down, took=2.0, update=1.0),
        record("end", 20, 39.0 + down, total_seconds=37.0, tokens=1, stopped=None),  # 2 s of saving
    ]
    folder.mkdir(parents=True)
    recipe = {"pretrain": {"steps": 20}, "training": {"checkpoint": {"every_steps": 15}}}
    write(recipe, folder / "recipe.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    times = [-1.0, 20.0 + down] if down else [-1.0]
    lines = [json.dumps({"time": time, "command": "x"}) + "\n" for time in times]
    (folder / "sessions.jsonl").write_text("".join(lines))
    return folder


def test_every_second_of_a_run_has_a_name(tmp_path: Path) -> None:
    (found,) = cost.costs_of(run_folder(tmp_path / "a" / "b" / "1"))
    assert found == cost.Cost(
        run="a/b", phase="pretrain", updates=3, total=39.0, training=21.0, evaluation=8.0,
        scheduling=2.0, checkpoints=5.5, planning=2.0, other=0.5,
    )  # fmt: skip
    assert sum(getattr(found, part) for part in cost.PARTS) == found.total


def test_the_time_that_a_run_was_down_is_no_cost(tmp_path: Path) -> None:
    (found,) = cost.costs_of(run_folder(tmp_path / "1", down=5000.0))
    assert found.total == 39.0
    assert (found.checkpoints, found.planning, found.other) == (5.5, 1.0, 1.5)


def test_rows_are_means_over_seeds_and_json_has_every_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(run_folder(tmp_path / "set" / "default" / seed)) for seed in "12"]
    cost.main(runs)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| set/default | pretrain | 2 | 39 | 53.85% | 20.51% | 5.13% |")
    assert lines[2].endswith("| 666.7 |")
    cost.main(["--json", *runs])
    assert [c["training"] for c in json.loads(capsys.readouterr().out)] == [21.0, 21.0]


def test_a_real_run_is_accounted_for(recipe_values: dict[str, Any]) -> None:
    folder = run(only_pretraining(recipe_values), "prepare", "pretrain")
    (found,) = cost.costs_of(folder)
    assert found.updates == 3
    assert all(getattr(found, part) > 0 for part in cost.PARTS[:-1])
    assert abs(found.other) < 0.2 * found.total


@pytest.mark.parametrize("what", ["absent", "no run", "unfinished"])
def test_bad_input_is_one_message_and_status_2(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if what == "no run":
        folder.mkdir()
    if what == "unfinished":
        lines = (run_folder(folder) / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(SystemExit) as end:
        cost.main([str(folder)])
    assert end.value.code == 2
    expected = {
        "absent": "not a run folder",
        "no run": "no run here",
        "unfinished": "none of these",
    }
    assert expected[what] in capsys.readouterr().err
