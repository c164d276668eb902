"""Whole runs of a tiny model: what comes out, accumulation, resuming, ranks."""

import itertools
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drpruning.common.errors import BadInput, Interrupted
from drpruning.pipeline.run import STAGES, Run
from drpruning.recipe import parse_recipe
from drpruning.training.trainer import Trainer
from helpers.small_recipe import small_recipe
from helpers.small_runs import variant

TIMES = {"time", "tokens_per_second", "evaluation_seconds", "update_seconds", "total_seconds"}


def run(values: dict[str, Any], *stages: str) -> Path:
    with Run(parse_recipe(values)).session("test") as this:
        this.run(stages or STAGES)
    return this.folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def complete(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text_folder: Path
) -> dict[str, Any]:
    """The recipe of a run that is complete; tests read its folder and leave it as it is."""
    folder = tmp_path_factory.mktemp("complete")
    values = small_recipe(model_folder, text_folder, folder / "run")
    run(values)
    return values


def test_whole_run_leaves_what_the_documents_promise(complete: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(complete["output"])
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "prune/plan.json",
                 "prune/masks.safetensors", "prune/similarity.json", "pruned/README.md",
                 "evaluation/source.json", "evaluation/pruned.json",
                 "evaluation/model.json"):  # fmt: skip
        assert (folder / name).is_file(), name
    assert not any((folder / "checkpoints").iterdir())
    for stage in ("pruned", "model"):
        model = AutoModelForCausalLM.from_pretrained(folder / stage)
        tokenizer = AutoTokenizer.from_pretrained(folder / stage)
        config = model.config
        assert (config.num_hidden_layers, config.hidden_size) == (2, 16)
        assert (config.intermediate_size, config.num_attention_heads) == (24, 2)
        tokens = tokenizer("red green", return_tensors="pt").input_ids
        assert model.generate(tokens, max_new_tokens=4, do_sample=False).shape == (1, 6)
    assert not list(folder.rglob("*.bin")) or all("data" in p.parts for p in folder.rglob("*.bin"))
    assert not list(folder.rglob("*.pt"))


def test_the_models_have_cards_that_say_what_was_done_and_measured(
    complete: dict[str, Any], model_folder: Path
) -> None:
    folder = Path(complete["output"])
    for name, phases in (("pruned", ["pruning"]), ("model", ["pruning", "continued pretraining"])):
        for file in ("generation_config.json", "tokenizer.json"):
            copied = (folder / name / file).read_bytes()
            assert copied == (model_folder / file).read_bytes(), file
        card = (folder / name / "README.md").read_text()
        head, rows = card.split("## Data\n\n")[1].split("\n| --- |")[0], card.split("\n| ")
        assert head.split(" | ")[2:] == [f"mean share, {phase}" for phase in phases[:-1]] + [
            f"mean share, {phases[-1]} |"
        ]
        shares = [row for row in rows if row.endswith("% |") or "% |\n" in row]
        assert len(shares) == len(complete["data"]["domains"])
        for column in range(1, 2 + len(phases)):
            total = sum(float(row.split(" | ")[column].split("%")[0]) for row in shares)
            assert total == pytest.approx(100, abs=0.1)
        assert "| layers | 3 | 2 |" in card
        measured = json.loads((folder / "evaluation" / f"{name}.json").read_text())
        assert f"| {measured['average_perplexity']:.2f} | " in card
        assert "Not measured yet" not in card


def test_files_have_the_mode_that_umask_gives(recipe_values: dict[str, Any]) -> None:
    for phase in ("prune", "pretrain"):
        recipe_values[phase]["steps"] = 2
    recipe_values["training"]["checkpoint"] = {"keep_every": 1}
    before = os.umask(0o027)
    try:
        folder = run(recipe_values)
    finally:
        os.umask(before)
    assert list(folder.glob("checkpoints/*/*.safetensors"))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    wrong = {p.name: oct(m) for p, m in modes.items() if m != (0o750 if p.is_dir() else 0o640)}
    assert wrong == {}


def test_metrics_hold_every_decision(complete: dict[str, Any]) -> None:
    records = metrics(Path(complete["output"]))
    for phase, steps, every in (("prune", 20, 2), ("pretrain", 12, 2)):
        evals = [r for r in records if r["kind"] == "eval" and r["phase"] == phase]
        assert [r["step"] for r in evals] == list(range(0, steps + 1, every))
        for record in evals:
            assert set(record["loss"]) == set(complete["data"]["domains"])
            assert sum(record["ratio"].values()) == pytest.approx(1)
            assert sum(record["reference_ratio"].values()) == pytest.approx(1)
        assert evals[-1]["reference_loss"] is not None
        blocks = complete[phase]["global_batch"] * every
        given = dict.fromkeys(evals[0]["loss"], 0.0)
        wanted = dict(given)
        for before, after in itertools.pairwise(evals):
            for name in given:
                given[name] += after["realised_share"][name] * blocks
                steps_worth = after["data"][name] - before["data"][name]
                assert steps_worth == pytest.approx(after["realised_share"][name] * every)
                wanted[name] += before["ratio"][name] * blocks
        assert all(abs(given[name] - wanted[name]) < 1 + 1e-6 for name in given)
    ends = [r for r in records if r["kind"] == "step" and r["phase"] == "prune"]
    assert set(ends[-1]["sparsity"]) == {"layer", "hidden", "group", "intermediate"}
    assert ends[-1]["target_sparsity"]["hidden"] == pytest.approx(0.5)


def test_second_start_of_a_complete_run_changes_nothing(complete: dict[str, Any]) -> None:
    folder = Path(complete["output"])
    before = {p: p.stat().st_mtime_ns for p in (folder / "model").iterdir()}
    lines = (folder / "metrics.jsonl").read_text()
    run(complete)
    assert {p: p.stat().st_mtime_ns for p in (folder / "model").iterdir()} == before
    assert (folder / "metrics.jsonl").read_text() == lines


def test_accumulation_equals_a_large_batch(recipe_values: dict[str, Any]) -> None:
    large = run(variant(recipe_values, "large", micro_batch=8), "prune", "pretrain")
    small = run(variant(recipe_values, "small", micro_batch=1), "prune", "pretrain")
    for one, two in zip(metrics(large), metrics(small), strict=True):
        assert one["kind"] == two["kind"]
        if one["kind"] == "eval":
            assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
    plans = [(folder / "prune" / "plan.json").read_text() for folder in (large, small)]
    assert plans[0] == plans[1]


class Killed(Exception):  # noqa: N818
    """Stands for the process ending with nothing saved."""


@pytest.mark.parametrize(("phase", "step"), [("prune", 3), ("prune", 13), ("pretrain", 7)])
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    complete: dict[str, Any],
    recipe_values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    step: int,
) -> None:
    whole = Path(complete["output"])
    cut = variant(recipe_values, "cut")
    plain_step = Trainer._train_step

    def dying(self: Trainer) -> None:
        if self.phase == phase and self.step == step:
            raise Killed
        plain_step(self)

    monkeypatch.setattr(Trainer, "_train_step", dying)
    with pytest.raises(Killed):
        run(cut, "prune", "pretrain")
    monkeypatch.setattr(Trainer, "_train_step", plain_step)
    resumed = run(cut, "prune", "pretrain")

    assert metrics(resumed) == metrics(whole)
    for name in ("prune/plan.json", "prune/plans.jsonl", "prune/schedule.json"):
        assert (resumed / name).read_text() == (whole / name).read_text(), name
    for name in ("prune/masks.safetensors", "pruned/model.safetensors", "model/model.safetensors"):
        one, two = load_file(whole / name), load_file(resumed / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_signal_saves_and_the_run_resumes(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_step = Trainer._train_step

    def signalled(self: Trainer) -> None:
        plain_step(self)
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", signalled)
    with pytest.raises(Interrupted):
        run(recipe_values, "prune")
    folder = Path(recipe_values["output"])
    assert (folder / "checkpoints" / "prune-00000007").is_dir()
    monkeypatch.setattr(Trainer, "_train_step", plain_step)
    run(recipe_values, "prune")
    assert (folder / "pruned" / "model.safetensors").is_file()


def test_signal_at_the_last_evaluation_is_not_lost(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_evaluation = Trainer._evaluate

    def signalled(self: Trainer, task: Any) -> None:
        plain_evaluation(self, task)
        if self.step == self.settings.steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_evaluate", signalled)
    with pytest.raises(Interrupted):
        run(recipe_values, "prune", "pretrain")
    folder = Path(recipe_values["output"])
    assert (folder / "checkpoints" / "prune-00000020").is_dir()
    assert not (folder / "pruned").exists()
    monkeypatch.setattr(Trainer, "_evaluate", plain_evaluation)
    run(recipe_values, "prune")
    assert (folder / "pruned").is_dir()


@pytest.mark.parametrize("handover", ["fresh", "continue"])
def test_handover_gives_pretraining_its_first_ratio(
    recipe_values: dict[str, Any], handover: str
) -> None:
    recipe_values["scheduling"] = {
        "handover": handover,
        "reference_loss": {"numbers": 3.4, "colours": 2.0, "animals": 1.0},
        "forecast": "never",
        "policy": "drpruning",
    }
    folder = run(recipe_values, "prune", "pretrain")
    evals = [r for r in metrics(folder) if r["kind"] == "eval"]
    ended = [r for r in evals if r["phase"] == "prune"][-1]
    began = next(r for r in evals if r["phase"] == "pretrain")
    initial = {n: d["share"] for n, d in recipe_values["data"]["domains"].items()}
    expected = ended["reference_ratio"] if handover == "continue" else initial
    assert began["reference_ratio"] == pytest.approx(expected)
    assert ended["reference_ratio"] != pytest.approx(initial)


@pytest.mark.parametrize("absent", ["prune", "pretrain"])
def test_either_phase_may_be_absent(recipe_values: dict[str, Any], absent: str) -> None:
    del recipe_values[absent]
    if absent == "prune":
        del recipe_values["model"]["target"]
    for phase in {"prune", "pretrain"} - {absent}:
        recipe_values[phase].update(steps=6)
    folder = run(recipe_values)
    assert (folder / "model").is_dir() == (absent == "prune")
    assert (folder / "pruned").is_dir() == (absent == "pretrain")
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("target", [{"num_layers": 1}, {"hidden_size": 16, "num_heads": 2}])
def test_axes_can_be_left_alone(recipe_values: dict[str, Any], target: dict[str, int]) -> None:
    recipe_values["model"]["target"] = target
    del recipe_values["pretrain"]
    folder = run(recipe_values, "prune")
    config = json.loads((folder / "pruned" / "config.json").read_text())
    assert config["num_hidden_layers"] == target.get("num_layers", 3)
    assert config["hidden_size"] == target.get("hidden_size", 32)
    assert config["intermediate_size"] == 48


@pytest.mark.parametrize("policy", ["naive_dro", "sheared", "constant"])
def test_other_policies_run(recipe_values: dict[str, Any], policy: str) -> None:
    recipe_values["scheduling"] = {"policy": policy}
    if policy != "constant":
        recipe_values["scheduling"]["reference_loss"] = dict.fromkeys(
            recipe_values["data"]["domains"], 1.0
        )
    folder = run(recipe_values, "prune", "pretrain")
    ratios = [r["ratio"] for r in metrics(folder) if r["kind"] == "eval"]
    assert (ratios[0] == ratios[-1]) == (policy == "constant")


def test_bfloat16_and_gradient_checkpointing_run(recipe_values: dict[str, Any]) -> None:
    recipe_values["training"].update(precision="bf16", gradient_checkpointing=True)
    folder = run(recipe_values, "prune", "pretrain")
    losses = [r["loss"] for r in metrics(folder) if r["kind"] == "step"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_compiled_run_gives_the_same_losses(recipe_values: dict[str, Any]) -> None:
    plain = run(variant(recipe_values, "plain"), "prune", "pretrain")
    compiled = run(variant(recipe_values, "compiled", compile=True), "prune", "pretrain")
    for one, two in zip(metrics(plain), metrics(compiled), strict=True):
        if one["kind"] == "eval":
            assert one["loss"] == pytest.approx(two["loss"], abs=1e-3)


def test_checkpoint_survives_only_for_its_recipe(recipe_values: dict[str, Any]) -> None:
    (run(recipe_values, "prepare") / "checkpoints" / "prune-00000005").mkdir(parents=True)
    recipe_values["training"]["seed"] = 99
    with pytest.raises(BadInput, match=r"another recipe \(training.seed \(saved 17, now 99\)\)"):
        run(recipe_values, "prepare")
