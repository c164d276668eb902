"""What is refused of a config.json without torch is what Transformers cannot compute with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2CLS, get_activation

from drpruning.common.errors import BadInput
from drpruning.models.config_values import ACTIVATIONS
from drpruning.models.inspect import shape_of
from drpruning.models.loading import check_loadable
from drpruning.pruning import FAMILIES

NAN, INFINITY = float("nan"), float("inf")
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def tiny_config(family: str, **change: Any) -> dict[str, Any]:
    config = {
        "model_type": family,
        "architectures": [FAMILIES[family].architecture],
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": None,
        "eos_token_id": None,
    }
    if family != "gpt_neox":
        config["num_key_value_heads"] = 2
    if family in {"gemma2", "qwen3"}:
        config["head_dim"] = 8
    return config | change


def trains(config: dict[str, Any], folder: Path) -> bool:
    """Whether Transformers builds a model from it whose loss and gradients are finite."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).train()
        with torch.no_grad():  # as a padding token's embedding often is
            model.get_input_embeddings().weight[1].zero_()
        tokens = torch.arange(1, 13)[None]
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
    except Exception:
        return False
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    return bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": parameters}


FAILING: list[tuple[str, dict[str, Any], str]] = [
    *[("llama", {"attention_dropout": v}, "attention_dropout must be a number from 0 to below 1")
      for v in (2, -0.1, NAN, None, "0")],
    ("gpt_neox", {"hidden_dropout": 2}, "hidden_dropout must be a number from 0 to below 1"),
    ("phi3", {"resid_pdrop": None}, "resid_pdrop must be a number from 0 to below 1"),
    *[("llama", {"rms_norm_eps": v}, "rms_norm_eps must be a number from 1e-30 to 1")
      for v in (0, 0.0, -1.0, NAN, 1e-50, None, "1e-5", True)],
    ("gpt_neox", {"layer_norm_eps": NAN}, "layer_norm_eps must be a number from 1e-30 to 1"),
    *[("mistral", {"initializer_range": v}, "initializer_range must be a number from 0 to 1")
      for v in (1e300, NAN, -1.0, None)],
    *[("qwen2", {"hidden_act": v}, "hidden_act must be one of gelu") for v in ("swiglu", None, 3)],
    ("gemma2", {"hidden_activation": "swiglu"}, "hidden_activation must be one of gelu, "),
    *[("llama", {"rope_theta": v}, r"rope_theta must be a number from 1 to 1e\+30")
      for v in (0, -1, 1e-300, NAN, None, "x")],
    ("gpt_neox", {"rotary_emb_base": 0, "rotary_pct": 1.0}, "rotary_emb_base must be a number"),
    *[("gpt_neox", {"rotary_pct": v}, "rotary_pct must be a number from 0 to 1") for v in (2, -1)],
    ("llama", rope(rope_type="default", rope_theta=0), "rope_parameters.rope_theta must be"),
    ("llama", rope(rope_type="banana", rope_theta=1e4), "rope_type must be one of default, "),
    ("llama", rope(rope_type=["x"], rope_theta=1e4), "rope_type must be one of default, "),
    ("llama", rope(rope_type="linear", rope_theta=1e4), "rope_parameters.factor must be given"),
    *[("llama", {"rope_scaling": {"type": "linear", "factor": v}}, "rope_scaling.factor must be")
      for v in (0, NAN, "4")],
    ("llama", rope(**YARN, original_max_position_embeddings=0), "must be a whole number from 1"),
    ("llama", rope(**LLAMA3 | {"high_freq_factor": None}), "high_freq_factor must be given"),
    ("llama", rope(**LONG | {"long_factor": [2.0] * 3}), "long_factor must be 4 numbers"),
    ("phi3", rope(**LONG | {"short_factor": "x"}), "short_factor must be a list of positive"),
    *[("qwen3", {"rope_parameters": v}, "rope_parameters must be an object") for v in ([1], "x")],
    *[("mistral", {"sliding_window": v}, "sliding_window must be a whole number from 1")
      for v in (0, -1, 2.5)],
    ("gemma2", {"sliding_window": None}, "sliding_window must be a whole number from 1"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": -1},
     "sliding_window must be a whole number from 1"),
    ("llama", {"layer_types": ["full_attention"]}, "layer_types must be a list of full_attention "),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "has no sliding_window"),
    ("qwen2", {"layer_types": ["full_attention", "x"]}, "layer_types must be a list of full_att"),
    *[("gemma2", {"query_pre_attn_scalar": v}, "query_pre_attn_scalar must be a whole number")
      for v in (0, None, 7.5)],
    *[("gemma2", {"final_logit_softcapping": v}, "final_logit_softcapping must be a number")
      for v in (0.0, NAN, "x")],
    ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping must be a number"),
    *[("llama", {"pad_token_id": v}, "pad_token_id must be a whole number from -61 to 60")
      for v in (61, -62, "x")],
    *[("llama", {"max_position_embeddings": v}, "max_position_embeddings must be a whole number")
      for v in (None, 2.5, "64", True)],
    *[("llama", {"head_dim": v}, "head_dim must be even") for v in (3, 7)],
    *[("llama", {"tie_word_embeddings": v}, "tie_word_embeddings must be true or false")
      for v in ("false", None, 1)],
    ("llama", {"attention_bias": "no"}, "attention_bias must be true or false, not 'no'"),
    *[("llama", {"head_dim": v}, "head_dim must be") for v in (0, -8, 8.0)],
    *[("llama", {"num_key_value_heads": v}, "num_key_value_heads must be") for v in (0, -1, 2.0)],
    ("llama", {"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    ("llama", {"hidden_size": 30}, "hidden_size 30 is not a multiple of num_heads 4"),
    ("gpt_neox", {"hidden_size": 34}, "hidden_size 34 is not num_heads 4 x head size 8"),
]  # fmt: skip
"""Family, what is changed in its config, and what the message says."""


def identifiers(cases: list[Any]) -> Iterator[str]:
    for family, change, *_ in cases:
        yield f"{family}-{json.dumps(change)}"


@pytest.mark.parametrize(("family", "change", "message"), FAILING, ids=identifiers(FAILING))
def test_values_that_cannot_be_computed_with_are_refused(
    family: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = tiny_config(family, **change)
    with pytest.raises(BadInput, match=message) as refused:
        shape_of(config, "model.source: m")
    assert str(refused.value).startswith("model.source: m: ")
    assert not trains(config, tmp_path)


NONSENSE: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"attention_dropout": 1}, "from 0 to below 1, not 1"),
    ("llama", {"rms_norm_eps": INFINITY}, "from 1e-30 to 1, not inf"),
    ("llama", {"rope_theta": 0.5}, "rope_theta must be a number from 1"),
    ("llama", {"max_position_embeddings": 0}, "max_position_embeddings must be a whole number"),
    ("llama", rope(rope_type="linear", rope_theta=1e4, factor=-2.0), "factor must be a number"),
    ("llama", rope(**LLAMA3 | {"low_freq_factor": 4.0}), r"high_freq_factor must be above .*4"),
    ("llama", rope(**LONG | {"long_factor": [0] * 4}), "long_factor must be a list of positive"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be"),
    ("llama", {"hidden_act": "prelu"}, "hidden_act must be one of"),
    ("llama", {"is_encoder_decoder": True}, "with is_encoder_decoder true is not a causal"),
    ("llama", {"is_causal": False}, "with is_causal false is not a causal"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention true is not a"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]},
     "LlamaForSequenceClassification is not a causal"),
]  # fmt: skip
"""Values that Transformers computes with, but not a language model's loss."""


@pytest.mark.parametrize(("family", "change", "message"), NONSENSE, ids=identifiers(NONSENSE))
def test_values_that_make_no_sense_are_refused(
    family: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        shape_of(tiny_config(family, **change), "model.source: m")


FINE: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"attention_dropout": 0.5, "rms_norm_eps": 1e-12, "rope_theta": 5e5}),
    ("llama", {"pad_token_id": -1, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": None}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "head_dim": None}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2}}),
    ("llama", {"rope_scaling": None, "rope_parameters": None, "layer_types": None}),
    ("llama", rope(**YARN)),
    ("llama", rope(**YARN, original_max_position_embeddings=32, attention_factor=None)),
    ("llama", rope(**LLAMA3)),
    ("llama", rope(**LONG)),
    ("llama", rope(rope_type="default", rope_theta=1e4) | {"rope_theta": None}),
    ("llama", {"sliding_window": 0, "rotary_emb_base": 0, "layer_norm_eps": 0}),  # not its fields
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 1}),
    ("mistral", {"hidden_size": 33}),
    ("qwen2", {"sliding_window": -1, "use_sliding_window": False}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4,
               "use_sliding_window": True}),
    ("gemma2", {"final_logit_softcapping": None, "hidden_act": "swiglu"}),  # it has another field
    ("phi3", {"resid_pdrop": 0.1, "sliding_window": None}),
    *[("phi3", rope(**LONG | {"rope_type": v}) | {"original_max_position_embeddings": 32})
      for v in ("longrope", "yarn")],
    ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 10000, "hidden_dropout": 0.0,
                  "pad_token_id": 100, "rms_norm_eps": 0, "rope_theta": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change"), FINE, ids=identifiers(FINE))
def test_values_that_work_are_taken(family: str, change: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(family, **change)
    assert shape_of(config, "m").num_layers == 2
    assert trains(config, tmp_path)
    check_loadable(str(tmp_path), "model.source")


def test_activations_are_those_of_transformers_without_parameters() -> None:
    without = {name for name in ACT2CLS if not list(get_activation(name).parameters())}
    assert without - {"xielu"} == ACTIVATIONS


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": 2},
        {"head_dim": 3},
        {"sliding_window": -1},
        {"num_key_value_heads": 3},
        {"dtype": "banana"},
    ],
    ids=json.dumps,
)
def test_a_forward_pass_without_weights_finds_what_the_table_does_not_know(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("mistral", **change)))
    state = torch.get_rng_state()
    with pytest.raises(BadInput, match=r"config\.json of .* does not make a model: .*; correct it"):
        check_loadable(str(tmp_path), "model.source")
    assert torch.equal(torch.get_rng_state(), state)


LLAMA31 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
           "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-2-7b": ({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
    }, 6_738_415_616),
    "Llama-3.1-8B": ({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_scaling": LLAMA31, "rope_theta": 500000.0,
        "tie_word_embeddings": False, "vocab_size": 128256,
    }, 8_030_261_248),
    "Mistral-7B-v0.1": ({
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "vocab_size": 32000,
    }, 7_241_732_096),
    "Qwen2-7B": ({
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
        "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
        "max_position_embeddings": 131072, "max_window_layers": 28, "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 152064,
    }, 7_615_616_512),
    "Qwen3-8B": ({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
        "max_position_embeddings": 40960, "max_window_layers": 36, "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    }, 8_190_735_360),
    "gemma-2-2b": ({
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
    }, 2_614_341_888),
    "Phi-3-mini-128k": ({
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 32000,
        "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.07] * 47 + [64.0], "short_factor": [1.0] * 48,
                         "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False,
        "vocab_size": 32064,
    }, 3_821_079_552),
    "pythia-1.4b": ({
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 16,
        "num_hidden_layers": 24, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304,
    }, 1_414_647_808),
}  # fmt: skip
"""Configs as they are published, without what no forward pass reads, and the parameters."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_taken(name: str) -> None:
    config, parameters = PUBLISHED[name]
    assert shape_of(config, name).num_parameters() == parameters
