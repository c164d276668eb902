"""One-shot pruning of the experiments: exact shapes, and important parts that were planted stay."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))

from tiny_models import GROUPED_TARGETS, TARGETS, TOKENS, VARIANTS, tiny

from drpruning.pruning import (
    FAMILIES,
    ModelShape,
    PruningPlan,
    apply_plan,
    attach_masks,
    initialise_masks,
)
from drpruning.recipe import parse_recipe
from experiments import one_shot, random_weights
from helpers.small_runs import write

METHODS = pytest.mark.parametrize("method", one_shot.METHODS)
CASES = [(VARIANTS[family], TARGETS["all"]) for family in FAMILIES] + [
    (VARIANTS["gemma2-tied"], TARGETS["all"]),
    *(({"family": family, "kv_heads": 2}, target)
      for family in ("llama", "phi3") for target in GROUPED_TARGETS.values()),
]  # fmt: skip
KEPT = 3
"""The index of the part that is planted, none that would be kept among equals."""


def plan_of(model: PreTrainedModel, method: str, **target: int) -> PruningPlan:
    rows = ({"input_ids": row[None], "labels": row[None], "use_cache": False} for row in TOKENS)
    masked = attach_masks(copy.deepcopy(model), ModelShape.of(model).pruned_to(**target))
    initialise_masks(masked, one_shot.METHODS[method](masked, rows))
    return masked.plan()


@METHODS
@pytest.mark.parametrize(("variant", "sizes"), CASES, ids=str)
def test_every_family_is_cut_to_exactly_its_target_and_every_time_alike(
    variant: dict[str, Any], sizes: dict[str, int], method: str
) -> None:
    if variant["family"] == "gpt_neox":
        sizes = sizes | {"hidden_size": 16, "num_heads": 2}
    model = tiny(**variant)
    plan = plan_of(model, method, **sizes)
    assert plan.to_json() == plan_of(model, method, **sizes).to_json()
    cut = apply_plan(model, plan)
    assert ModelShape.of(cut) == ModelShape.of(model).pruned_to(**sizes)
    assert cut(input_ids=TOKENS).logits.isfinite().all()


@torch.no_grad()
def planted(part: str, *, kv_heads: int = 4) -> PreTrainedModel:
    """A model in which all parts of a kind but one do little; heads are of size 8."""
    model = tiny(plain=True, kv_heads=kv_heads)
    weak = {size: torch.where(torch.arange(size) == KEPT, 1.0, 0.05) for size in (2, 4, 20, 32)}
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        if part == "layer":
            for matrix in (*attention.parameters(), *mlp.parameters()):
                matrix.mul_(weak[4][index])
        elif part == "head":
            attention.v_proj.weight.mul_(weak[4].repeat_interleave(8)[:, None])
            attention.o_proj.weight.mul_(weak[4].repeat_interleave(8))
        elif part == "group":  # the second one, of heads 2 and 3, of which 3 is the better
            factors = torch.tensor([0.05, 1.0]).repeat_interleave(8)
            attention.v_proj.weight.mul_(factors[:, None])
            attention.o_proj.weight.mul_(weak[4].repeat_interleave(8))
        elif part == "intermediate":
            mlp.up_proj.weight.mul_(weak[20][:, None])
            mlp.down_proj.weight.mul_(weak[20])
        else:
            attention.o_proj.weight.mul_(weak[32][:, None])
            mlp.down_proj.weight.mul_(weak[32][:, None])
    if part == "hidden":
        model.model.embed_tokens.weight.mul_(weak[32])
        model.lm_head.weight.mul_(weak[32])
    return model


@METHODS
def test_important_parts_that_were_planted_stay(method: str) -> None:
    assert plan_of(planted("layer"), method, num_layers=1).layers == (KEPT,)
    hidden = plan_of(planted("hidden"), method, hidden_size=4).hidden
    assert KEPT in hidden and hidden != (0, 1, 2, 3)  # noqa: PT018 - the first are kept among equals
    assert plan_of(planted("head"), method, num_heads=1).heads == ((KEPT,),) * 4
    narrow = plan_of(planted("intermediate"), method, intermediate_size=1)
    assert narrow.intermediate == ((KEPT,),) * 4


@METHODS
def test_a_planted_group_stays_with_its_best_head(method: str) -> None:
    plan = plan_of(planted("group", kv_heads=2), method, num_heads=1, num_kv_heads=1)
    assert plan.kv_groups == ((1,),) * 4
    if method != "activations":  # what heads of a group compute differs here in what reads it
        assert plan.heads == ((KEPT,),) * 4


def test_the_magnitude_of_a_part_is_the_sum_of_its_squared_weights() -> None:
    model = tiny(plain=True)
    masked = attach_masks(copy.deepcopy(model), ModelShape.of(model).pruned_to(**TARGETS["all"]))
    scores = one_shot.magnitude(masked)
    layer = model.model.layers[1]
    attention, mlp, head = layer.self_attn, layer.mlp, slice(16, 24)

    def squares(*weights: Tensor) -> float:
        return sum(weight.square().sum().item() for weight in weights)

    own = [attention.q_proj, attention.k_proj, attention.v_proj]
    expected = squares(*(m.weight[head] for m in own), attention.o_proj.weight[:, head])
    assert scores["head"][1, 2].item() == pytest.approx(expected)
    rows = (mlp.gate_proj.weight[5], mlp.up_proj.weight[5], mlp.down_proj.weight[:, 5])
    assert scores["intermediate"][1, 5].item() == pytest.approx(squares(*rows))
    matrices = [w for w in layer.parameters() if w.ndim == 2]
    assert scores["layer"][1].item() == pytest.approx(squares(*matrices))
    total = sum(squares(w) for w in model.parameters() if w.ndim == 2)
    assert scores["hidden"].sum().item() == pytest.approx(total)


def test_fused_matrices_count_as_their_parts() -> None:
    """Rows of a fused matrix belong to the head or feed-forward dimension that slicing cuts."""
    for family, fused in (
        ("phi3", "self_attn.qkv_proj"),
        ("gpt_neox", "attention.query_key_value"),
    ):
        model = tiny(family)
        layer = model.get_submodule(f"{FAMILIES[family].layers}.0")
        with torch.no_grad():
            layer.get_submodule(fused).weight.mul_(0)
            size = 8 if family == "phi3" else 3 * 8
            start = 32 + KEPT * 8 if family == "phi3" else KEPT * size  # of its keys; of all of it
            layer.get_submodule(fused).weight[start : start + 8] = 9
        sizes = {"hidden_size": 8, "num_heads": 1} if family == "gpt_neox" else {"num_heads": 1}
        assert plan_of(model, "magnitude", **sizes).heads[0] == (KEPT,)


def one_shot_recipe(values: dict[str, Any], output: Path) -> dict[str, Any]:
    return values | {"output": str(output), "training": values["training"] | {"seed": 3}}


@METHODS
def test_the_folder_loads_in_transformers_and_is_the_same_every_time(
    recipe_values: dict[str, Any], tmp_path: Path, method: str
) -> None:
    plans = []
    for name in ("one", "two"):
        values = one_shot_recipe(recipe_values, tmp_path / name)
        values["data"]["prepared"] = str(tmp_path / "data")
        folder = one_shot.prune(parse_recipe(values), method, blocks=2)
        plans.append(PruningPlan.load(folder / "plan.json"))
    assert plans[0] == plans[1]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert ModelShape.of(model) == plans[0].target
    assert ModelShape.of(model).num_layers == recipe_values["model"]["target"]["num_layers"]
    assert AutoTokenizer.from_pretrained(folder)("one red cat").input_ids


def test_calibration_takes_so_many_blocks_of_each_domain(
    recipe_values: dict[str, Any],
) -> None:
    seen = []
    for seed in (0, 0, 1):
        recipe_values["training"]["seed"] = seed
        run = one_shot.Run(parse_recipe(recipe_values))
        blocks = [batch["input_ids"] for batch in one_shot.calibration(run, "taylor", 4)]
        assert [tuple(block.shape) for block in blocks] == [(1, 16)] * 12
        seen.append(torch.cat(blocks))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_bad_input_is_one_message_and_status_2(
    recipe_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        file = write(recipe_values, tmp_path / "recipe.yaml")
        with pytest.raises(SystemExit) as end:
            one_shot.main(["magnitude", str(file), *arguments])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "--blocks: must be at least 1" in refused("--blocks", "0")
    assert "model.source: nowhere/at/all is no folder" in refused(
        "--set", "model.source=nowhere/at/all"
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "pruned").mkdir(parents=True)
    assert "exists; name another output" in refused()
    assert "prune: missing" in refused("--set", "prune=null", "--set", "model.target=null")


def test_random_weights_have_shape_and_tokenizer_of_the_model_and_follow_the_seed(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        random_weights.main([str(model_folder), str(tmp_path / name), "--seed", str(seed)])
    weights = {
        name: AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("one", "again", "two")
    }
    source = AutoModelForCausalLM.from_pretrained(model_folder)
    assert ModelShape.of(tmp_path / "one") == ModelShape.of(source)
    tokenizer = (tmp_path / "one" / "tokenizer.json").read_bytes()
    assert tokenizer == (model_folder / "tokenizer.json").read_bytes()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights["one"][name], weights["again"][name])
    assert not torch.equal(weights["one"][name], weights["two"][name])
    assert not torch.equal(weights["one"][name], source.state_dict()[name])
    with pytest.raises(SystemExit) as end:
        random_weights.main([str(model_folder), str(tmp_path / "one")])
    assert end.value.code == 2
    assert "exists; name another folder" in capsys.readouterr().err
