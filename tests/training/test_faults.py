"""Numbers that go wrong, domains that run out, sparsities off their target."""

import copy
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drpruning.common.errors import TrainingError
from drpruning.pipeline.preflight import plan_run
from drpruning.pruning.hard_concrete import LARGEST_LOG_ALPHA, SMALLEST_LOG_ALPHA
from drpruning.recipe import parse_recipe
from drpruning.training import objective, perplexity
from drpruning.training import trainer as loop_module
from drpruning.training.optimizer import step_unless
from drpruning.training.perplexity import perplexity_fields
from drpruning.training.pruning_trainer import deviation_text
from drpruning.training.skipped_steps import StepMetrics
from drpruning.training.trainer import Trainer
from drpruning.training.validation import block_losses
from helpers.interrupted_runs import assert_same_outcome, run_until
from helpers.small_runs import (
    altered_model,
    drprune,
    only_pretraining,
    run,
    torchrun,
    variant,
    write,
)

TIMES = {"time", "tokens_per_second", "evaluation_seconds", "update_seconds", "total_seconds"}


def logged(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in record.items() if k not in TIMES}
        for record in records
        if not kinds or record["kind"] in kinds
    ]


class Poison:
    """Makes some steps (counted from 1) go wrong.

    By kind: the `loss` is NaN, that of the `last micro-batch` is infinite, or a gradient of the
    `first` or `last` parameter is; in pruning the last one is a multiplier.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.phase, self.steps, self.kind = "pretrain", set[int](), "loss"
        self.states: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self.blocks: dict[int, dict[str, list[int]]] = {}
        plain_step, plain_loss = Trainer._train_step, objective.language_modelling_loss
        plain_clip = loop_module.clip_gradients
        on, left = False, 0

        def train_step(loop: Trainer) -> None:
            nonlocal on, left
            left = len(loop.micro_batches)
            on = loop.phase == self.phase and loop.step + 1 in self.steps
            before = state(loop) if on else {}
            if on:
                self.blocks[loop.step + 1] = loop.segment.blocks(loop.step - loop.evaluated)
            plain_step(loop)
            if on:
                self.states[loop.step] = before, state(loop)

        def loss(*arguments: Any) -> Tensor:
            nonlocal left
            left -= 1
            if on and self.kind == "last micro-batch" and left == 0:
                return plain_loss(*arguments) * torch.inf
            return plain_loss(*arguments) * (torch.nan if on and self.kind == "loss" else 1.0)

        def clip(parameters: Any, limit: float) -> Tensor:
            parameters = list(parameters)
            if on and self.kind in {"first", "last"}:
                parameter = parameters[0 if self.kind == "first" else -1]
                parameter.grad.view(-1)[-1] = torch.inf
            return plain_clip(parameters, limit)

        monkeypatch.setattr(Trainer, "_train_step", train_step)
        monkeypatch.setattr(objective, "language_modelling_loss", loss)
        monkeypatch.setattr(loop_module, "clip_gradients", clip)

    def __call__(self, *steps: int, phase: str = "pretrain", kind: str = "loss") -> None:
        self.phase, self.steps, self.kind = phase, set(steps), kind


def state(loop: Trainer) -> dict[str, Tensor]:
    """Everything that a step changes: weights, masks, multipliers, moments.

    Masks as every forward pass clamps them.
    """
    found = {name: p.detach().clone() for name, p in loop.parameters.items()}
    for name, log_alpha in found.items():
        if "log_alpha" in name:
            log_alpha.clamp_(SMALLEST_LOG_ALPHA, LARGEST_LOG_ALPHA)
    for name, parameter in loop.parameters.items():
        for slot, value in loop.optimizer.state[parameter].items():
            found[f"{name}:{slot}"] = value.clone()
    return found


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return Poison(monkeypatch)


@pytest.mark.parametrize(
    ("phase", "kind", "precision"),
    [
        ("prune", "loss", "fp32"),
        ("prune", "last micro-batch", "bf16"),
        ("prune", "first", "fp32"),
        ("prune", "last", "fp32"),
        ("pretrain", "loss", "fp32"),
        ("pretrain", "last micro-batch", "bf16"),
        ("pretrain", "last", "fp32"),
    ],
)
def test_a_step_that_goes_wrong_changes_nothing_and_is_counted(
    recipe_values: dict[str, Any], poison: Poison, phase: str, kind: str, precision: str
) -> None:
    values = recipe_values if phase == "prune" else only_pretraining(recipe_values)
    values["training"]["precision"] = precision
    values[phase]["steps"] = 6
    values["scheduling"] = {"policy": "constant"}
    plain = run(variant(values, "plain"), phase)
    poison(2, 5, phase=phase, kind=kind)  # the last of a segment, the first of another
    folder = run(variant(values, "poisoned"), phase)

    assert sorted(poison.states) == [2, 5]
    for before, after in poison.states.values():
        changed = [n for n in after if n in before and not torch.equal(before[n], after[n])]
        assert changed == []
        assert any("exp_avg" in name for name in before)
    if phase == "prune":
        assert any("log_alpha" in name for name in after)
        assert any("linear" in name for name in after)
    skips = logged(folder, "skip")
    assert [record["step"] for record in skips] == [2, 5]
    for record in skips:
        assert (record["loss"] is None) == (kind in {"loss", "last micro-batch"})
        assert record["gradient_norm"] is None
        assert sum(map(len, record["blocks"].values())) == values[phase]["global_batch"]
        assert record["blocks"] == poison.blocks[record["step"]]
    steps, expected = logged(folder, "step"), logged(plain, "step")
    assert [record["skipped"] for record in steps] == [1, 1]
    assert all(record["skipped"] == 0 for record in expected)
    for one, two in zip(steps, expected, strict=True):
        assert one["loss"] > 0
        assert one["gradient_norm"] > 0
        assert one["learning_rate"] == two["learning_rate"]
        assert one["tokens"] == two["tokens"]
    assert [r["realised_share"] for r in logged(folder, "eval")] == [
        r["realised_share"] for r in logged(plain, "eval")
    ]


def test_the_first_step_may_go_wrong(recipe_values: dict[str, Any], poison: Poison) -> None:
    poison(1)
    folder = run(only_pretraining(recipe_values), "pretrain")
    ((_, after),) = poison.states.values()
    assert all(not v.any() for n, v in after.items() if n.endswith((":exp_avg", ":step")))
    assert logged(folder, "end")[-1]["step"] == 4


def test_too_many_in_a_row_end_the_run_before_them_and_name_the_blocks(
    recipe_values: dict[str, Any], poison: Poison, tmp_path: Path
) -> None:
    values = only_pretraining(recipe_values)
    values["pretrain"].update(steps=14)
    values["training"].update(skip_limit=4, checkpoint={"every_steps": 1})
    failing = variant(values, "failing")
    poison(2, 3, 6, 7, 8, 9)
    recipe = write(failing, tmp_path / "recipe.yaml")
    said = drprune("run", recipe, status=1)
    folder = Path(failing["output"])
    skips = logged(folder, "skip")
    assert [record["step"] for record in skips] == [2, 3, 6, 7, 8, 9]
    assert "pretrain: loss or gradient norm not finite at steps 6 to 9" in said
    assert "training.skip_limit (4)" in said
    assert "the latest checkpoint is of step 5" in said
    assert "meets these steps again" in said
    for name, blocks in skips[-1]["blocks"].items():
        assert f"{name} {', '.join(map(str, blocks))}" in said
    assert max(p.name for p in (folder / "checkpoints").iterdir() if p.name[0] != ".").endswith("5")

    assert drprune("run", recipe, status=1).endswith(said[said.index("drprune: ") :])
    drprune("run", recipe, "--set", "training.skip_limit=5")
    skipped = [record["step"] for record in logged(folder, "skip")]
    assert skipped == [2, 3, 6, 7, 8, 9]


def test_a_checkpoint_that_is_due_at_a_skipped_step_follows_the_next_good_one(
    recipe_values: dict[str, Any], poison: Poison
) -> None:
    values = only_pretraining(recipe_values)
    values["pretrain"].update(steps=9)
    values["training"]["checkpoint"] = {"every_steps": 4, "keep": 9}
    poison(4, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drpruning.training.phases.remove_checkpoints", lambda *_: None)
        folder = run(values, "pretrain")
    steps = sorted(int(path.name[-8:]) for path in (folder / "checkpoints").iterdir())
    assert steps == [6, 8, 9]


def test_skips_in_a_row_are_counted_across_log_lines_and_restarts(
    recipe_values: dict[str, Any], poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = only_pretraining(recipe_values)
    values["pretrain"].update(steps=12, evaluate_every=4)
    values["training"].update(skip_limit=5, log_every=2, checkpoint={"every_steps": 1})
    poison(3, 5, 6, 7, 8, 10)
    whole = run(variant(values, "whole"), "pretrain")
    cut = variant(values, "cut")
    run_until(cut, 7, monkeypatch)
    assert_same_outcome(run(cut, "pretrain"), whole)
    poison(5, 6, 7, 8, 9)
    with pytest.raises(TrainingError, match="steps 5 to 9"):
        run(variant(values, "failing"), "pretrain")


def test_numbers_are_summed_once_whenever_they_are_read() -> None:
    rows = [[1.0, 2.0], [torch.nan, 1.0], [3.0, torch.inf], [5.0, 4.0], [-torch.inf, 0.0]]
    for cuts in ([], [1, 2, 3, 4], [2]):
        numbers, found = StepMetrics(), []
        for index, row in enumerate(rows):
            if index in cuts:
                found += numbers.synchronize()
                kept = json.loads(json.dumps(numbers.state_dict()))
                numbers = StepMetrics()
                numbers.load_state_dict(kept)
            bad = numbers.add(index + 1, ["loss", "norm"], torch.tensor(row, dtype=torch.float64))
            assert bad.item() == (index in {1, 2, 4})
        found += numbers.synchronize()
        assert [(s.step, s.in_a_row) for s in found] == [(2, 1), (3, 2), (5, 1)]
        assert numbers.means() == {"loss": 3.0, "norm": 3.0}
        assert (numbers.counted, numbers.skipped, numbers.in_a_row) == (2, 3, 1)
        numbers.reset()
        assert numbers.in_a_row == 1
        assert all(map(math.isnan, numbers.means().values()))


@pytest.mark.parametrize("maximize", [False, True])
def test_the_fused_optimizer_can_be_told_to_leave_everything_as_it_is(maximize: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=0.1, weight_decay=0.5, fused=True, maximize=maximize
    )
    twin = copy.deepcopy(layer)
    plain = torch.optim.AdamW(
        twin.parameters(), lr=0.1, weight_decay=0.5, fused=True, maximize=maximize
    )
    for skipped in (0.0, 1.0, 0.0, 1.0, 1.0, 0.0):
        for model in (layer, twin):
            model.zero_grad()
            (model(torch.ones(2, 5)) ** 2).sum().backward()
        if skipped:
            layer.weight.grad.fill_(torch.nan)
        else:
            plain.step()
        step_unless(optimizer, torch.tensor(skipped))
    assert torch.equal(layer.weight, twin.weight)
    assert torch.equal(layer.bias, twin.bias)


RANK_SCRIPT = """
import os, sys
import torch
from drpruning.training import objective, trainer
from drpruning.cli import main

plain_loss, plain_step = objective.language_modelling_loss, trainer.Trainer._train_step
now = 0

def step(self):
    global now
    now = self.step + 1
    plain_step(self)

def loss(*arguments):
    wrong = now == 2 and os.environ["RANK"] == os.environ["WRONG_RANK"]
    return plain_loss(*arguments) * (torch.nan if wrong else 1.0)

objective.language_modelling_loss, trainer.Trainer._train_step = loss, step
sys.argv[1:] = ["run", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("parallelism", ["fsdp2", pytest.param("ddp", marks=pytest.mark.slow)])
def test_ranks_skip_together(
    recipe_values: dict[str, Any], tmp_path: Path, poison: Poison, parallelism: str
) -> None:
    values = only_pretraining(recipe_values)
    values["training"]["log_every"] = 1
    poison(2)
    one = run(variant(values, "one"), "pretrain")
    two = variant(values, "two")
    two["training"]["parallelism"] = parallelism
    recipe = write(two, tmp_path / "two.yaml")
    script = tmp_path / "poisoned.py"
    script.write_text(RANK_SCRIPT)
    done = torchrun(2, script, recipe, WRONG_RANK="1")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(two["output"])
    (mine,), (theirs,) = logged(one, "skip"), logged(folder, "skip")
    assert (mine["step"], mine["blocks"]) == (theirs["step"], theirs["blocks"])
    for first, second in zip(logged(one, "eval"), logged(folder, "eval"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)


# Evaluation losses.


def lose(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """The validation loss of colours becomes `value` at one step."""
    plain, steps = loop_module.domain_losses, itertools.count(0, 2)

    def losses(*arguments: Any, **settings: Any) -> dict[str, float]:
        found = plain(*arguments, **settings)
        return found | ({"colours": value} if next(steps) == step else {})

    monkeypatch.setattr(loop_module, "domain_losses", losses)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lost_evaluation_leaves_the_ratio_and_says_so_everywhere(
    recipe_values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    value: float,
) -> None:
    values = only_pretraining(recipe_values)
    values["pretrain"]["steps"] = 8
    values["scheduling"] = {
        "policy": "sheared",
        "reference_loss": dict.fromkeys(values["data"]["domains"], 1.0),
    }
    lose(monkeypatch, 4, value)
    said = drprune("run", write(values, tmp_path / "recipe.yaml"))
    folder = Path(values["output"])
    evals = {record["step"]: record for record in logged(folder, "eval")}
    assert evals[4]["loss"]["colours"] is None
    assert evals[4]["ratio"] == evals[2]["ratio"] != evals[6]["ratio"]
    assert evals[4]["explanation"]["ratio_updated"] is False
    assert set(evals[4]["explanation"]["unusable"]) == {"colours"}
    (warning,) = logged(folder, "warning")
    expected = f"the validation loss of colours is {value}; the ratio stays as it was"
    assert (warning["step"], warning["message"]) == (4, expected)
    assert f"warning: pretrain 4: {expected}" in said
    page = (folder / "report.html").read_text()
    assert f"Step 4: {expected}" in page
    assert "Ratio not updated" in page


def test_a_domain_that_is_never_measured_leaves_the_ratio_and_the_others_their_numbers(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = only_pretraining(recipe_values)
    plain = loop_module.domain_losses

    def losses(*arguments: Any, **settings: Any) -> dict[str, float]:
        return plain(*arguments, **settings) | {"colours": math.nan}

    def by_block(*arguments: Any, **settings: Any) -> dict[str, Any]:
        found = block_losses(*arguments, **settings)
        return found | {"colours": np.full(len(found["colours"]), np.nan)}

    monkeypatch.setattr(loop_module, "domain_losses", losses)
    monkeypatch.setattr(perplexity, "block_losses", by_block)
    said = drprune("run", write(values, tmp_path / "recipe.yaml"))
    folder = Path(values["output"])
    evals = logged(folder, "eval")
    shares = {name: domain["share"] for name, domain in values["data"]["domains"].items()}
    assert [record["ratio"] for record in evals] == [pytest.approx(shares)] * 3
    assert all(record["loss"]["colours"] is None for record in evals)
    assert all(record["loss"]["animals"] > 0 for record in evals)
    line = "the validation loss of colours is nan; the ratio stays as it was"
    assert said.count(line) == 3
    page = (folder / "report.html").read_text()
    assert page.count(line) == 1
    assert f"3 times, step 0 to 4: {line}." in page
    measured = json.loads((folder / "evaluation" / "model.json").read_text())
    assert (measured["worst_domain"], measured["average_perplexity"]) == (None, None)
    assert measured["perplexity"]["animals"] > 1


# Domains that run out.


def running_out(values: dict[str, Any], rule: str) -> dict[str, Any]:
    """Half of the data is from a domain that lasts for about 20 of 60 steps."""
    values = only_pretraining(values)
    values["scheduling"] = {"policy": "constant"}
    values["pretrain"].update(steps=60, evaluate_every=10)
    values["training"]["checkpoint"] = {"every_steps": 7}
    for name, share in {"numbers": 0.1, "colours": 0.0001, "animals": 0.8999}.items():
        values["data"]["domains"][name].update(share=share)
    values["data"]["domains"]["animals"]["on_exhausted"] = rule
    return values


@pytest.mark.parametrize("rule", ["repeat", "redistribute", "stop"])
def test_a_domain_that_runs_out_follows_its_rule(
    recipe_values: dict[str, Any], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = running_out(recipe_values, rule)
    said = drprune("run", write(values, tmp_path / "recipe.yaml"))
    folder = Path(values["output"])
    evals, (end,) = logged(folder, "eval"), logged(folder, "end")
    (out,) = [record for record in evals if record["used_up"]]
    assert out["used_up"] == {"animals": rule}
    assert 0 < out["step"] < 60
    (warning,) = logged(folder, "warning")
    assert warning["step"] == out["step"]
    assert warning["message"] in said
    assert "the data of animals are exhausted" in warning["message"]
    assert warning["message"] in (folder / "report.html").read_text()
    assert all(r["ratio"]["animals"] == pytest.approx(0.8999) for r in evals)
    later = [r["realised_share"]["animals"] for r in evals if r["step"] > out["step"]]
    if rule == "stop":
        assert (end["step"], later) == (out["step"], [])
        assert end["stopped"] == "animals exhausted (on_exhausted: stop)"
        assert "ended at step" in (folder / "report.html").read_text()
        assert (folder / "model" / "model.safetensors").is_file()
    else:
        assert (end["step"], end["stopped"]) == (60, None)
        assert all(s == pytest.approx(0.9, abs=0.02) if rule == "repeat" else s == 0 for s in later)
    assert (evals[-1]["epochs"]["animals"] == 1) == (rule != "repeat")

    # Interrupted in the segment in which it runs out: the same in the end.
    cut = variant(values, "cut")
    run_until(cut, out["step"] - 2, monkeypatch)
    assert logged(run(cut, "pretrain")) == logged(folder)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("repeat", "will be used"),
        ("redistribute", "the other domains get its share from there on"),
        ("stop", "the next evaluation then ends pretrain"),
    ],
)
def test_the_plan_warns_of_a_domain_that_runs_out(
    recipe_values: dict[str, Any], rule: str, said: str
) -> None:
    plan = plan_run(parse_recipe(running_out(recipe_values, rule)))
    assert plan.problems == []
    (line,) = [w for w in plan.data_warnings if "data.domains.animals" in w]
    assert said in line
    assert plan.domains["animals"].exhausted_at is not None
    epochs = plan.domains["animals"].epochs
    assert epochs is not None
    assert epochs > 1 if rule == "repeat" else epochs == 1


def test_a_phase_whose_text_is_exhausted_before_it_ends_at_once(
    recipe_values: dict[str, Any],
) -> None:
    values = recipe_values
    values["prune"].update(steps=60, evaluate_every=10)
    values["scheduling"] = {"policy": "constant"}
    for name, share in {"numbers": 0.1, "colours": 0.0001, "animals": 0.8999}.items():
        values["data"]["domains"][name].update(share=share, on_exhausted="stop")
    folder = run(values, "prune", "pretrain")
    prune, pretrain = logged(folder, "end")
    assert 0 < prune["step"] < 60
    assert (pretrain["step"], pretrain["stopped"]) == (0, prune["stopped"])
    one, two = (load_file(folder / name / "model.safetensors") for name in ("pruned", "model"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# Masks that stall.


def test_sparsities_off_their_target_are_reported_and_the_cut_is_exact(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    values = recipe_values
    del values["pretrain"]
    values["prune"].update(mask_learning_rate=1e-6, sparsity_warmup=0.4)
    said = drprune("run", write(values, tmp_path / "recipe.yaml"))
    folder = Path(values["output"])
    warnings = logged(folder, "warning")
    assert {record["step"] for record in warnings} == {8, 20}
    for step in (8, 20):
        (line,) = [r["message"] for r in warnings if r["step"] == step]
        assert line in said
        assert line.startswith("masks are below their target sparsity: ")
        assert "hidden 0.00" in line
        assert all(f"{name} 0." in line for name in ("layer", "group", "intermediate"))
    page = (folder / "report.html").read_text()
    assert page.count("masks are below their target sparsity") == 2
    config = json.loads((folder / "pruned" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (2, 16)
    assert (config["intermediate_size"], config["num_attention_heads"]) == (24, 2)


@pytest.mark.parametrize("last", [False, True])
def test_advice_for_masks_depends_on_the_side_of_the_target(last: bool) -> None:
    names = ("layer", "hidden", "group", "intermediate")
    target = dict.fromkeys(names, 0.5)
    deviation = dict(zip(names, (0.2, 0.3, 0.01, 0.06), strict=True))
    sparsity = dict(zip(names, (0.3, 0.8, 0.51, 0.5), strict=True))
    below, above = deviation_text(sparsity, target, deviation, last=last)
    assert "layer 0.300 of 0.500 (0.200 off in a layer), intermediate 0.500" in below
    assert "more prune.steps or a higher prune.mask_learning_rate" in below
    assert "hidden 0.800 of 0.500" in above
    assert "a lower prune.mask_learning_rate or multiplier_learning_rate" in above
    assert "group" not in below + above
    assert ("exact all the same" in below) == ("exact all the same" in above) == last
    assert deviation_text(sparsity, target, dict.fromkeys(names, 0.05), last=last) == []


def test_no_warning_where_all_goes_well(recipe_values: dict[str, Any]) -> None:
    folder = run(only_pretraining(recipe_values), "pretrain")
    assert logged(folder, "warning", "skip") == []


# Models that hold no numbers.


def test_a_source_of_numbers_that_are_not_finite_is_refused(
    recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    broken = altered_model(model_folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    recipe_values["model"]["source"] = str(broken)
    said = drprune("run", write(recipe_values, tmp_path / "recipe.yaml"), status=2)
    assert f"model.source: the weights in {broken} hold numbers that are not finite" in said
    assert "model.layers.1.mlp.up_proj.weight" in said


def that_overflows(model_folder: Path, folder: Path) -> str:
    """A model of finite weights that are so large that no output is finite."""
    broken = altered_model(model_folder, folder)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"].fill_(3e38)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    return str(broken)


@pytest.mark.parametrize(
    ("masks", "words"),
    [("noise", "the validation loss is not finite in any domain"), ("taylor", "the importance of")],
)
def test_a_model_that_computes_no_numbers_is_refused_before_training(
    recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path, masks: str, words: str
) -> None:
    values = recipe_values
    values["model"]["source"] = that_overflows(model_folder, tmp_path / "broken")
    values["prune"].update(initial_masks=masks, calibration_batches=2)
    said = drprune("run", write(values, tmp_path / "recipe.yaml"), status=1)
    assert f"drprune: prune 0: {words}" in said
    assert "check its weights and its config.json" in said
    assert not any((Path(values["output"]) / name).exists() for name in ("checkpoints", "pruned"))


@pytest.mark.parametrize(
    ("every_steps", "words"),
    [
        (9, "pretrain 4: the validation loss is not finite in any domain"),
        (1, r"pretrain 1: \d+ of the trained tensors hold numbers that are not finite"),
    ],
)
def test_training_that_diverges_ends_without_a_model(
    recipe_values: dict[str, Any], tmp_path: Path, every_steps: int, words: str
) -> None:
    values = only_pretraining(recipe_values)
    values["pretrain"].update(learning_rate=1e300, evaluate_every=4)
    values["training"]["checkpoint"] = {"every_steps": every_steps}
    said = drprune("run", write(values, tmp_path / "recipe.yaml"), status=1)
    assert re.search(words, said)
    assert "no model is written; lower pretrain.learning_rate, and start again" in said
    folder = Path(values["output"])
    assert not (folder / "model").exists()
    assert not list(folder.glob("checkpoints/*"))


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_no_domain_is_the_worst_where_a_loss_is_not_known(lost: float) -> None:
    for losses in ({"a": lost, "b": 2.0}, {"b": 2.0, "a": lost}):
        fields = perplexity_fields(losses)
        assert fields["worst_domain"] is None
        assert not math.isfinite(fields["average_perplexity"])
        assert fields["perplexity"]["b"] == math.exp(2.0)


def test_a_perplexity_may_be_beyond_all_numbers() -> None:
    fields = perplexity_fields({"a": 800.0, "b": 2.0})
    assert (fields["worst_domain"], fields["perplexity"]["a"]) == ("a", math.inf)
    assert fields["average_perplexity"] == pytest.approx(math.exp(401))
