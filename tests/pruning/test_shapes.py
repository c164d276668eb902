import json
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VARIANTS, tiny
from transformers import LlamaConfig

from drpruning.common.errors import BadInput
from drpruning.pipeline.plan_warnings import client_warnings
from drpruning.pruning import FAMILIES, ModelShape

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
LLAMA_13B = LLAMA_7B | {
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
}
QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 50304,
}
PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_hidden_layers": 32,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "vocab_size": 32064,
}
PHI3_LONG = PHI3 | {"rope_scaling": {"type": "su", "short_factor": [1.0] * 48}}


@pytest.mark.parametrize(
    ("source", "target", "parameters"),
    [
        (LLAMA_7B, (32, 4096, 11008, 32), 6_738_415_616),
        (LLAMA_13B, (40, 5120, 13824, 40), 13_015_864_320),
        (LLAMA_7B, (32, 2560, 6912, 20), 2_701_560_320),
        (LLAMA_7B, (24, 2048, 5504, 16), 1_345_423_360),
        (LLAMA_13B, (24, 2048, 5504, 16), 1_345_423_360),
        (LLAMA_7B, (24, 1024, 2816, 8), 373_867_520),
        (QWEN2_7B, (28, 3584, 18944, 28), 7_615_616_512),
        (QWEN2_7B, (28, 1536, 8960, 14), 1_799_508_480),
    ],
)
def test_parameters_of_the_papers_shapes(source, target, parameters):
    names = ("num_layers", "hidden_size", "intermediate_size", "num_heads")
    shape = ModelShape.of(source).pruned_to(**dict(zip(names, target, strict=True)))
    assert shape.num_parameters() == parameters
    assert shape.head_dim == 128
    assert shape.num_embedding_parameters() == 2 * shape.vocab_size * shape.hidden_size


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_count_is_the_models_own(variant):
    model = tiny(**variant)
    shape = ModelShape.of(model)
    assert shape.num_parameters() == model.num_parameters()
    matrices = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    assert shape.num_embedding_parameters() == sum(m.numel() for m in matrices)


def test_every_source_of_a_shape_gives_the_same(tmp_path):
    model = tiny("qwen2", kv_heads=2, tied=True)
    model.save_pretrained(tmp_path)
    shapes = [
        ModelShape.of(model),
        ModelShape.of(model.config),
        ModelShape.of(model.config.to_dict()),
        ModelShape.of(tmp_path),
        ModelShape.of(str(tmp_path / "config.json")),
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert shapes[0].tied_embeddings
    assert shapes[0].num_kv_heads == 2


def test_dictionary_round_trip():
    shape = ModelShape.of(tiny())
    assert shape.switches == ("attention_bias", "mlp_bias")
    assert ModelShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


def test_key_value_heads_follow():
    mha, gqa = ModelShape.of(LLAMA_7B), ModelShape.of(QWEN2_7B)
    assert mha.pruned_to(num_heads=16).num_kv_heads == 16
    assert gqa.pruned_to(num_heads=14).num_kv_heads == 2
    assert gqa.pruned_to(num_kv_heads=3).num_heads == 21
    assert gqa.pruned_to(num_heads=7, num_kv_heads=1).num_kv_heads == 1
    assert gqa.pruned_to() == gqa
    sheared = gqa.pruned_to(num_heads=12, num_kv_heads=2)
    assert (sheared.num_heads, sheared.num_kv_heads) == (12, 2)
    assert gqa.pruned_to(num_heads=4, num_kv_heads=4).queries_per_group == 1


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (LLAMA_7B, {"hidden_size": 4097}, r"hidden_size 4097 .* at most 4096"),
        (LLAMA_7B, {"num_layers": 0}, r"num_layers must be at least 1, not 0"),
        (LLAMA_7B, {"num_layers": 2.5}, r"num_layers must be a whole number, not 2.5"),
        (LLAMA_7B, {"num_layers": True}, r"num_layers must be a whole number, not True"),
        (LLAMA_7B, {"layers": 3}, r"'layers' cannot be pruned; name any of num_layers"),
        (LLAMA_7B, {"head_dim": 64}, r"'head_dim' cannot be pruned"),
        (LLAMA_7B, {"num_heads": 16, "num_kv_heads": 8},
         "num_kv_heads 8 with num_heads 16 is not reachable: every query head .* own"),
        (QWEN2_7B, {"num_heads": 12},
         "12 is no multiple of the 7 query .* name num_kv_heads too; .* num_heads 12 num_kv_heads"),
        (QWEN2_7B, {"num_heads": 14, "num_kv_heads": 4},
         "num_kv_heads 4 .* keeps the same .* 7 .* hidden_size 3584 num_heads 15 num_kv_heads 3"),
        (QWEN2_7B, {"num_heads": 8, "num_kv_heads": 1}, "num_heads 7 num_kv_heads 1"),
        (LLAMA_7B, {"hidden_size": 100, "num_heads": 16},
         "hidden_size 96 num_heads 16, or .*, or hidden_size 105 num_heads 15"),
        (LLAMA_7B, {"num_heads": 20}, "hidden_size 4080 num_heads 20"),
        (NEOX, {"hidden_size": 512, "num_heads": 4},
         "512 is not num_heads 4 x head size 64, .* hidden_size 384 num_heads 6"),
        (NEOX, {"hidden_size": 256}, "nearest"),
        (PHI3_LONG, {"hidden_size": 2048}, "2048 is not num_heads 32 x head size 96"),
    ],
)  # fmt: skip
def test_unreachable_targets_name_the_dimension_and_the_remedy(source, target, told):
    with pytest.raises(BadInput, match=told):
        ModelShape.of(source).pruned_to(**target)


def test_refused_targets_are_those_that_transformers_refuses():
    sizes = {"num_attention_heads": 3, "hidden_size": 16, "head_dim": 4}
    with pytest.raises(Exception, match="hidden size"):
        LlamaConfig(**sizes, num_key_value_heads=3)
    with pytest.raises(BadInput):
        ModelShape.of(tiny(hidden_size=16)).pruned_to(num_heads=3)
    assert ModelShape.of(tiny("qwen2", hidden_size=16)).pruned_to(num_heads=3).num_heads == 3


@settings(max_examples=60)
@given(data=st.data())
def test_refusals_name_shapes_that_work(data):
    config = data.draw(st.sampled_from([LLAMA_7B, QWEN2_7B, NEOX, PHI3, PHI3_LONG]))
    source = ModelShape.of(config)
    target = {
        name: data.draw(st.integers(1, getattr(source, name)), label=name)
        for name in ("hidden_size", "num_heads", "num_kv_heads")
        if data.draw(st.booleans())
    }
    try:
        shape = source.pruned_to(**target)
    except BadInput as error:
        told = str(error).partition("nearest shapes that work: ")[2].split(", or ")
        assert 1 <= len(told) <= 3
        for text in told:
            words = text.split()
            sizes = dict(zip(words[::2], map(int, words[1::2]), strict=True))
            assert source.pruned_to(**sizes).hidden_size == sizes["hidden_size"]
    else:
        assert all(getattr(shape, name) == size for name, size in target.items())
        assert shape.num_heads % shape.num_kv_heads == 0
        assert shape.queries_per_group <= source.queries_per_group


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_are_not_there_mean_what_transformers_takes_for_them(family):
    """Small config.json files lack what their class has as default."""
    sizes = {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 24,
        "num_attention_heads": 32, "vocab_size": 61,
    }  # fmt: skip
    bare = sizes | {"model_type": family, "architectures": [FAMILIES[family].architecture]}
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[family].architecture)
        model = model(model.config_class(**sizes, pad_token_id=0))
    assert ModelShape.of(bare) == ModelShape.of(model)
    assert ModelShape.of(bare).num_parameters() == model.num_parameters()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "not a causal language model"),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "LlamaModel is not a causal"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "not a causal language model"),
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "known families: llama, .*docs/families.md",
        ),
        ({}, "known families"),
        ({"model_type": "llama", "hidden_size": 4}, "num_hidden_layers must be a whole number"),
        (LLAMA_7B | {"vocab_size": None}, "vocab_size"),
        (LLAMA_7B | {"num_key_value_heads": 5}, "multiple of num_kv_heads 5"),
        (LLAMA_7B | {"architectures": "LlamaForCausalLM"}, "must be a list"),
        (17, "not from int"),
        ("nowhere/at-all", "cannot be read: no such file"),
    ],
)
def test_what_is_no_prunable_model_is_refused(config, told):
    with pytest.raises(BadInput, match=told):
        ModelShape.of(config)


def test_broken_config_files_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        ModelShape.of(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="JSON object"):
        ModelShape.of(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_layers": None}, "num_layers"),
        ({"color": 3}, "has no color"),
        ({"switches": ["gate_bias"]}, "gate_bias"),
        ({"switches": "x"}, "list of names"),
        ({"model_type": "gpt9"}, "known families"),
    ],
)
def test_bad_shape_dictionaries_are_refused(change, told):
    with pytest.raises(BadInput, match=told):
        ModelShape.from_dict(ModelShape.of(LLAMA_7B).to_dict() | change)


def test_layers_of_alternating_kinds_are_counted_in_pairs():
    gemma = ModelShape.of(tiny("gemma2", num_hidden_layers=6))
    with pytest.raises(BadInput, match=r"num_layers 3 is no multiple of 2: .* work: 2 or 4$"):
        gemma.pruned_to(num_layers=3)
    with pytest.raises(BadInput, match=r"num_layers 1 is no multiple of 2: .* work: 2$"):
        gemma.pruned_to(num_layers=1)
    assert gemma.pruned_to(num_layers=4).num_layers == 4
    odd = ModelShape.of(tiny("gemma2", num_hidden_layers=5))  # its kinds do not come in pairs
    assert odd.pruned_to(num_layers=4).num_layers == 4
    assert client_warnings(gemma, gemma.pruned_to(num_layers=4)) == []
    (warning,) = client_warnings(odd, odd.pruned_to(num_layers=4))
    assert "llama.cpp and Transformers before 4.53 take a layer's attention from its" in warning
    assert odd.pruned_to(num_layers=3).num_layers == 3


def test_missing_fields_of_a_shape_are_named():
    with pytest.raises(BadInput, match="lacks vocab_size"):
        ModelShape.from_dict(
            {k: v for k, v in ModelShape.of(LLAMA_7B).to_dict().items() if k != "vocab_size"}
        )


def test_shapes_and_plans_need_no_torch():
    program = (
        "import sys; from drpruning.pruning import ModelShape, PruningPlan, FAMILIES;"
        f"print(ModelShape.of({LLAMA_7B!r}).num_parameters());"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.splitlines() == ["6738415616", "[]"]
