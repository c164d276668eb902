"""Several ranks, in shards and whole: they equal one, go on from each other, and die together."""

import json
import os
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rank_worker import REASON, do
from safetensors.torch import load_file

LOSS, NORM = 1e-5, 1e-6
SELDOM = "--monitor-interval=0.5"
"""As on a busy machine: several ranks may have ended when the launcher looks."""
RESULTS = ("prune/masks.safetensors", "pruned/model.safetensors", "model/model.safetensors")


class Place:
    """Where the runs of a test lie, and how they are started."""

    def __init__(self, folder: Path, model: Path, text: Path):
        self.folder, self.model, self.text = folder, model, text
        self.raised = ""

    @cached_property
    def killed(self) -> str:
        """What a start says in which a run is resumed and another one loses a rank."""
        said = self.start(
            2,
            self.job("raised", parallelism="ddp"),
            self.job("killed", ends=("prune", 4, 1, "kill"), parallelism="fsdp2"),
            status=1,
        )
        do(self.job("killed"))
        return said

    def values(self, name: str, **training: Any) -> dict[str, Any]:
        """A recipe of both phases; `training` changes that section."""
        shares = {"numbers": 0.6, "colours": 0.3, "animals": 0.1}
        phase = {"global_batch": 8, "evaluate_every": 2, "learning_rate": 1e-2}
        pruning = {"mask_samples": 4, "initial_masks": "taylor", "calibration_batches": 2}
        return {
            "model": {
                "source": str(self.model),
                "target": {
                    "num_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
                },
            },
            "data": {
                "root": str(self.text),
                "prepared": str(self.folder / "prepared"),
                "sequence_length": 16,
                "validation_blocks": 5,
                "workers": 1,
                "domains": {n: {"source": f"{n}.jsonl", "share": s} for n, s in shares.items()},
            },
            "prune": {"steps": 8, **phase, **pruning},
            "pretrain": {"steps": 6, **phase},
            "training": {
                "micro_batch": 4,
                "precision": "fp32",
                "log_every": 1,
                "checkpoint": {"every_steps": 3},
                **training,
            },
            "output": str(self.folder / name),
        }  # fmt: skip

    def job(self, name: str, ends: tuple[Any, ...] | None = None, **training: Any) -> Any:
        values = self.values(name, **training)
        return {"values": values} | ({"ends": ends} if ends else {})

    def start(self, ranks: int, *jobs: Any, status: int = 0) -> str:
        """Do jobs under torchrun; returns what it printed."""
        file = self.folder / "jobs.json"
        file.write_text(json.dumps(jobs))
        worker = Path(__file__).with_name("rank_worker.py")
        done = torchrun(ranks, worker, file)
        assert (done.returncode != 0) == status, done.stderr[-3000:]
        return done.stderr

    def metrics(self, name: str) -> list[dict[str, Any]]:
        records = map(json.loads, (self.folder / name / "metrics.jsonl").read_text().splitlines())
        return [record for record in records if record["kind"] in {"step", "eval"}]


def torchrun(ranks: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return launch(*launcher, SELDOM, *command)


def launch(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text_folder: Path) -> Place:
    """A start of two ranks, ended by the death of one; before and after it, runs on one."""
    place = Place(tmp_path_factory.mktemp("ranks"), model_folder, text_folder)
    do(place.job("one"))
    do(place.job("one-two", ends=("prune", 5, 0, "leave")))
    small = {"parallelism": "fsdp2", "micro_batch": 1, "gradient_checkpointing": True}
    place.raised = place.start(
        2,
        place.job("ddp", parallelism="ddp", micro_batch=2),
        place.job("fsdp2", **small),
        place.job("one-two", parallelism="fsdp2"),
        place.job("two-one", ends=("pretrain", 4, 0, "leave"), **small),
        place.job("two-two", ends=("prune", 7, 0, "leave"), **small),
        place.job("two-two", **small),
        place.job("raised", ends=("pretrain", 4, 1, "raise"), parallelism="ddp"),
        status=1,
    )
    do(place.job("two-one"))
    return place


DIED = [pytest.param(name, marks=pytest.mark.slow) for name in ("raised", "killed")]


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "one-two", "two-one", "two-two", *DIED])
def test_ranks_that_differ_in_number_or_died_equal_one(place: Place, name: str) -> None:
    if name in {"raised", "killed"}:
        assert place.killed  # the start that resumes the one and ends the other
    one, other = place.metrics("one"), place.metrics(name)
    assert [(r["phase"], r["kind"], r["step"]) for r in one] == [
        (r["phase"], r["kind"], r["step"]) for r in other
    ]
    for first, second in zip(one, other, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=LOSS)
        if first["kind"] == "eval":
            assert first["ratio"] == pytest.approx(second["ratio"], abs=1e-5)
        elif (first["phase"], first["step"]) == ("prune", 1):  # from the same weights and masks
            assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=NORM)
    plans = [(place.folder / n / "prune" / "plan.json").read_text() for n in ("one", name)]
    assert plans[0] == plans[1]
    for file in RESULTS:
        mine, theirs = (load_file(place.folder / n / file) for n in ("one", name))
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[key], theirs[key], atol=1e-4) for key in mine)


def test_resumed_shards_equal_uninterrupted_ones_to_the_bit(place: Place) -> None:
    whole, resumed = (place.folder / name for name in ("fsdp2", "two-two"))
    for file in RESULTS:
        one, two = load_file(whole / file), load_file(resumed / file)
        assert all(torch.equal(one[key], two[key]) for key in one), file


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_every_rank_holds_the_same_ratio(place: Place, name: str) -> None:
    first, second = (
        json.loads((place.folder / name / f"ratios-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first == second
    logged = [r["ratio"] for r in place.metrics(name) if r["kind"] == "eval"]
    assert first == logged


@pytest.mark.slow
def test_dead_rank_takes_the_run_down_with_its_reason(place: Place) -> None:
    assert "drprune: rank 1 fails:\nTraceback" in place.raised
    assert f"RuntimeError: {REASON}" in place.raised
    assert "Signal 9 (SIGKILL)" in place.killed
    for report in (place.raised, place.killed):
        assert report.count("rank 0 ends because another rank is gone: ") == 1
        # torchrun's own; that of the rank, which torchrun shows once more with the root cause
        assert report.count("Traceback") == (3 if report is place.raised else 1)
        assert "rank      : 1 (local_rank: 1)" in report.partition("Root Cause")[2]
    assert f"RuntimeError: {REASON}" in place.raised.partition("Root Cause")[2]


@pytest.mark.slow
def test_every_family_in_shards_equals_the_whole_model() -> None:
    done = torchrun(2, Path(__file__).with_name("family_worker.py"))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_three_ranks_resume_to_the_bit(place: Place, parallelism: str) -> None:
    """With three ranks the order of a sum depends on where a gradient lies in what is sent."""
    names = [f"{parallelism}-{name}" for name in ("whole", "cut")]
    jobs = [
        place.job(name, ends, parallelism=parallelism)
        for name, ends in (
            (names[0], None),
            (names[1], ("pretrain", 4, 0, "leave")),
            (names[1], None),
        )
    ]
    for job in jobs:
        job["values"]["prune"].update(global_batch=12, mask_samples=3)
        job["values"]["pretrain"].update(global_batch=12)
    place.start(3, *jobs)
    for file in RESULTS:
        one, two = (load_file(place.folder / name / file) for name in names)
        assert all(torch.equal(one[key], two[key]) for key in one), file


@pytest.mark.slow
def test_compiled_shards_give_the_same_losses(place: Place) -> None:
    place.start(2, place.job("compiled", compile=True, gradient_checkpointing=True))
    for one, two in zip(place.metrics("one"), place.metrics("compiled"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version=2"]])
def test_accelerate_launch_starts_a_run_whatever_its_configuration(
    place: Place, config: list[str]
) -> None:
    name = f"launched{len(config)}"
    recipe = place.folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(place.values(name)))
    launcher = ["-m", "accelerate.commands.launch", *config, "--num_processes=2"]
    done = launch(*launcher, "-m", "drpruning.cli", "prune", recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (place.folder / name / "pruned" / "model.safetensors").is_file()
    sessions = (place.folder / name / "sessions.jsonl").read_text().splitlines()
    assert json.loads(sessions[-1])["ranks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_hanging_rank_takes_the_run_down_within_the_timeout(place: Place, parallelism: str) -> None:
    settings = {"parallelism": parallelism, "rank_timeout": 0.25}
    job = place.job(f"hanging-{parallelism}", ("pretrain", 2, 1, "hang"), **settings)
    begin = time.monotonic()
    said = place.start(2, job, status=1)
    assert time.monotonic() - begin < 120
    assert "Timed out waiting" in said
    assert "rank      : 0 (local_rank: 0)" in said.partition("Root Cause")[2]
