"""Masks that start from importance, and mask learning that ends before its last step."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drpruning.common.errors import BadInput
from drpruning.pruning import ModelShape, PruningPlan
from drpruning.recipe import Stop, parse_recipe
from drpruning.runs.records import load_run
from drpruning.training import pruning_trainer as stopping_module
from drpruning.training.pruning_trainer import PruningTrainer, is_settled
from drpruning.training.trainer import Trainer
from helpers.small_runs import run

TIMES = {"time", "tokens_per_second", "evaluation_seconds", "update_seconds", "total_seconds"}
SOURCE = ModelShape.of(
    {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 20,
        "intermediate_size": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 8,
        "tie_word_embeddings": False,
    }
)


def plan(*hidden: int) -> PruningPlan:
    return PruningPlan(
        source=SOURCE,
        target=SOURCE.pruned_to(hidden_size=len(hidden)),
        layers=(0,),
        hidden=hidden,
        kv_groups=((0, 1),),
        heads=((0, 1),),
        intermediate=((0, 1, 2, 3),),
    )


A, NEAR_A, FAR = plan(*range(10)), plan(*range(9), 12), plan(*range(10, 20))
"""The first two differ in two of twenty dimensions."""
ON_TARGET = {"hidden": 0.01}


@pytest.mark.parametrize(
    ("plans", "similarity", "settled"),
    [
        ([A, A, A], 1.0, True),
        ([A, NEAR_A, A], 0.9, True),
        ([A, NEAR_A, A], 0.95, False),
        ([FAR, A, A, A], 0.98, True),
        ([A, A, FAR, FAR], 0.98, False),
        ([A, A], 0.98, False),
        ([], 0.98, False),
    ],
)
def test_settled_is_when_each_of_the_last_plans_agrees_with_the_one_before(
    plans: list[PruningPlan], similarity: float, settled: bool
) -> None:
    stop = Stop(similarity=similarity, evaluations=2)
    assert is_settled(plans, ON_TARGET, stop) == settled
    assert not is_settled(plans, {"hidden": 0.2} | ON_TARGET | {"layer": 0.06}, stop)


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def of_kind(records: Iterable[dict[str, Any]], kind: str, phase: str) -> list[dict[str, Any]]:
    return [r for r in records if (r["kind"], r["phase"]) == (kind, phase)]


def tensors_equal(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def stopping(recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stops at step 8 of 20: every plan is similar enough, every sparsity near enough."""
    monkeypatch.setattr(stopping_module, "LARGEST_DEVIATION", 1.0)
    recipe_values["prune"]["stop"] = {"similarity": 0.05, "evaluations": 2}
    recipe_values["pretrain"]["steps"] = 4
    return recipe_values


def test_mask_learning_ends_once_settled_and_the_run_continues(stopping: dict[str, Any]) -> None:
    folder = run(stopping, "prepare", "prune", "pretrain", "evaluate", "report")
    records = logged(folder)
    (end,) = of_kind(records, "end", "prune")
    evals = of_kind(records, "eval", "prune")
    assert end["step"] == 8
    assert "agreed" in end["stopped"]
    assert evals[-1]["step"] == end["step"]
    assert of_kind(records, "step", "prune")[-1]["step"] <= end["step"]
    (recovered,) = of_kind(records, "end", "pretrain")
    assert (recovered["step"], recovered["stopped"]) == (4, None)
    plans = [json.loads(line) for line in (folder / "prune" / "plans.jsonl").open()]
    assert plans[-1]["step"] == end["step"]
    assert plans[-1]["plan"] == json.loads((folder / "prune" / "plan.json").read_text())
    phase = load_run(folder).phases["prune"]
    assert phase.end is not None
    assert phase.last_step == end["step"]
    page = (folder / "report.html").read_text()
    assert "not complete" not in page
    assert "ended at step 8: in each of the last 2 evaluations" in page


class Killed(Exception):  # noqa: N818
    """Stands for the process ending with nothing saved."""


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("in the step before", marks=pytest.mark.slow),
        "as it is saved",
        pytest.param("after the cut", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_around_the_stop_ends_like_an_uninterrupted_one(
    stopping: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    whole = run(stopping | {"output": str(tmp_path / "whole")}, "prune", "pretrain")
    (end,) = of_kind(logged(whole), "end", "prune")
    assert end["stopped"] is not None
    cut = stopping | {"output": str(tmp_path / "cut")}
    owner, name, early = {
        "in the step before": (Trainer, "_train_step", 1),
        "as it is saved": (Trainer, "_save", 0),
        "after the cut": (PruningTrainer, "write_outcome", 0),
    }[moment]
    plain = getattr(owner, name)

    def dying(self: Trainer, **settings: Any) -> Any:
        if self.step >= end["step"] - early:
            raise Killed
        return plain(self, **settings)

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(Killed):
        run(cut, "prune", "pretrain")
    monkeypatch.setattr(owner, name, plain)
    resumed = run(cut, "prune", "pretrain")
    assert logged(resumed) == logged(whole)
    for name in ("prune/plan.json", "prune/plans.jsonl", "prune/similarity.json"):
        assert (resumed / name).read_text() == (whole / name).read_text(), name
    for name in ("prune/masks.safetensors", "model/model.safetensors"):
        assert tensors_equal(resumed / name, whole / name)


def test_a_stop_that_could_never_come_is_refused(recipe_values: dict[str, Any]) -> None:
    recipe_values["prune"]["stop"] = {"evaluations": 8}
    with pytest.raises(
        BadInput, match=r"stop.evaluations \(8\) could never be met.* 7 that follow"
    ):
        parse_recipe(recipe_values)
    recipe_values["prune"]["stop"] = {"evaluations": 7}
    assert parse_recipe(recipe_values).prune is not None


@pytest.mark.slow
def test_a_stop_that_is_not_met_changes_nothing(recipe_values: dict[str, Any]) -> None:
    plain = run(recipe_values, "prune")
    recipe_values["output"] += "-strict"
    recipe_values["prune"]["stop"] = {"similarity": 1.0, "evaluations": 7}
    strict = run(recipe_values, "prune")
    assert logged(strict) == logged(plain)


@pytest.fixture
def ordered(recipe_values: dict[str, Any]) -> dict[str, Any]:
    recipe_values["prune"].update(initial_masks="taylor", calibration_batches=2, steps=4)
    del recipe_values["pretrain"]
    return recipe_values


def test_masks_start_in_order_of_importance_whatever_the_micro_batch(
    ordered: dict[str, Any],
) -> None:
    first = {}
    for micro_batch in (1, 4):
        ordered["output"] += str(micro_batch)
        ordered["training"]["micro_batch"] = micro_batch
        folder = run(ordered, "prune")
        first[micro_batch] = json.loads((folder / "prune" / "plans.jsonl").open().readline())
    assert first[1] == first[4]
    kept = first[1]["plan"]["intermediate"]
    assert kept[0] != kept[1]  # equal masks would keep the first of every layer
    assert logged(folder)[0]["parameters"] > 0.97 * source_parameters(ordered)


def source_parameters(values: dict[str, Any]) -> int:
    return ModelShape.of(Path(values["model"]["source"]) / "config.json").num_parameters()


def test_importance_is_measured_once(
    ordered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered["training"]["checkpoint"]["every_steps"] = 2
    plain_step, started = Trainer._train_step, []
    plain_start = PruningTrainer.start_from_scratch

    def dying(self: Trainer) -> None:
        if self.step == 3:
            raise Killed
        plain_step(self)

    def noted(self: PruningTrainer) -> None:
        started.append(self.step)
        plain_start(self)

    monkeypatch.setattr(PruningTrainer, "start_from_scratch", noted)
    monkeypatch.setattr(Trainer, "_train_step", dying)
    with pytest.raises(Killed):
        run(ordered, "prune")
    monkeypatch.setattr(Trainer, "_train_step", plain_step)
    run(ordered, "prune")
    assert started == [0]
