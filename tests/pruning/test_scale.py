"""Models of real size on the meta device: shapes, counts, masks, plans, memory."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from drpruning.models.memory import estimate_memory
from drpruning.pruning import MaskedModel, ModelShape, attach_masks
from drpruning.pruning.surgery import slice_parameters
from drpruning.recipe import Training

GPU = 80e9
CONFIGS = {
    "llama2-7b": {
        "model_type": "llama", "vocab_size": 32_000, "hidden_size": 4096,
        "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    "llama3-8b": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096,
        "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
    },
    "qwen2-7b": {
        "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584,
        "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "max_position_embeddings": 131_072, "rope_theta": 1e6,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
}  # fmt: skip
PARAMETERS = {
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "qwen2-7b": 7_615_616_512,
}
SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
TARGETS = {
    "llama2-2.7b": ("llama2-7b", (32, 2560, 6912, 20, 20), 2_701_560_320),
    "llama2-1.3b": ("llama2-7b", (24, 2048, 5504, 16, 16), 1_345_423_360),
    "llama2-0.5b": ("llama2-7b", (24, 1024, 2816, 8, 8), 373_867_520),
    "llama3-cut": ("llama3-8b", (24, 2048, 7168, 16, 8), None),
    "qwen2-1.8b": ("qwen2-7b", (28, 1536, 8960, 14, 2), 1_799_508_480),
}


def on_meta(name: str) -> PreTrainedModel:
    values = dict(CONFIGS[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def masked(name: str) -> tuple[MaskedModel, ModelShape]:
    source, sizes, _ = TARGETS[name]
    model = on_meta(source)
    target = ModelShape.of(model).pruned_to(**dict(zip(SIZES, sizes, strict=True)))
    return attach_masks(model, target), target


@pytest.mark.parametrize("name", CONFIGS)
def test_shape_and_count_are_the_model_s_own(name: str) -> None:
    model = on_meta(name)
    shape, config = ModelShape.of(model), CONFIGS[name]
    assert (shape.num_layers, shape.hidden_size, shape.intermediate_size) == (
        config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"],
    )  # fmt: skip
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (
        config["num_attention_heads"], config["num_key_value_heads"], 128,
    )  # fmt: skip
    assert shape == ModelShape.of(config | {"architectures": [type(model).__name__]})
    assert shape.num_parameters() == PARAMETERS[name]
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TARGETS)
def test_masks_and_plan_have_the_target_s_shape(name: str) -> None:
    model, target = masked(name)
    source, sizes, count = TARGETS[name]
    assert count is None or target.num_parameters() == count
    assert all(p.device.type == "cpu" for p in model.masks.parameters())
    expected = float(model.expected_parameters())
    assert expected == pytest.approx(PARAMETERS[source], rel=0.01)
    plan = model.plan()
    layers, hidden, intermediate, heads, groups = sizes
    assert plan.target == target
    assert (len(plan.layers), len(plan.hidden)) == (layers, hidden)
    assert {len(row) for row in plan.heads} == {heads}
    assert {len(row) for row in plan.kv_groups} == {groups}
    assert {len(row) for row in plan.intermediate} == {intermediate}


@pytest.mark.parametrize("name", TARGETS)
def test_kept_parts_are_exactly_the_target_s_parameters(name: str) -> None:
    model, target = masked(name)
    kept = slice_parameters(dict(on_meta(TARGETS[name][0]).named_parameters()), model.plan())
    assert all(tensor.is_meta for tensor in kept.values())
    assert sum(tensor.numel() for tensor in kept.values()) == target.num_parameters()


@pytest.mark.parametrize("name", CONFIGS)
def test_seven_billion_fit_on_eight_gpus_and_not_on_one(name: str) -> None:
    shape = ModelShape.of(CONFIGS[name])
    training = Training(micro_batch=1, gradient_checkpointing=True)
    memory = estimate_memory(shape, training, 4096, masked=True)
    one, four, eight = memory.sharded.values()
    assert one > four > eight > 16 * shape.num_parameters() / 8
    assert memory.whole > 16 * shape.num_parameters() > GPU
    assert one > GPU > eight
