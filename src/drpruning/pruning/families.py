"""Model families as tables: where the parts are and along which axes they are cut.

Counting, gating, folding and slicing are all derived from a `Family`; nothing else in the package
knows a parameter's name. How to add one: docs/families.md. Importable without torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from drpruning.common.errors import BadInput

Axis = Literal[
    "vocab", "hidden", "query", "key", "head_dim", "intermediate",
    "query_key_value", "head_triples", "gate_up",
]  # fmt: skip
"""What one dimension of a parameter runs over. `query` is query heads x head size, `key` is
key-value heads x head size (keys and values alike), `head_dim` a single head, which is never cut.
Fused matrices have `query_key_value` (all queries, then all keys, then all values), `head_triples`
(query, key and value of one head after the other) and `gate_up` (all gates, then all the rest)."""

STACKED: Mapping[Axis, tuple[Axis, ...]] = {
    "query_key_value": ("query", "key", "key"),
    "head_triples": ("query", "key", "key"),
    "gate_up": ("intermediate", "intermediate"),
}
"""Axes that are made of others."""

ParameterTable = Mapping[str, tuple[Axis, ...]]
"""Parameter name -> the axis of each of its dimensions."""

HeadRule = Literal["free", "divide", "fill"]
"""What a configuration demands of hidden size and heads: nothing; that the number of heads divides
the hidden size; that heads x head size is the hidden size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Where the parts of a model family are and how they couple.

    Attributes:
        model_type: `model_type` of the Transformers configuration.
        architecture: class name of the causal language model.
        layer_parameters: parameters of every layer, named within the layer.
        optional_parameters: configuration switch, or type of the rotary scaling -> layer parameters
            that it adds.
        global_parameters: parameters outside the layers.
        writers: linear modules of a layer that write into the residual stream; the second axis of
            their weight is the one whose units they read.
        norms: norms of a layer that read the residual stream; none where its linear modules read
            the stream as it is.
        norms_after: norm -> the linear module of the same layer whose output it normalises.
        centred_norms: whether the norms subtract the mean (LayerNorm), all of them.
        norm_offset: what the norms add to their weight.
        scaled_embedding: whether the embedding is multiplied by the root of the hidden size.
        embedding: module whose output starts the residual stream.
        layers: the list of layers.
        final_norm: the norm after the last layer.
        output: the output projection, the embedding's own matrix where embeddings are tied.
        config_names: dimension of a shape -> its name in the configuration. Without KV heads every
            query head has its own; without head size it is hidden size / heads.
        defaults: what the configuration's class takes for a field that is absent.
        heads: what the configuration demands of hidden size and heads.
        heads_by_switch: the same where a switch is on.
        layer_period: after how many layers their kinds repeat (sliding and full attention in turn).
            Such runs of layers are kept or removed together, because llama.cpp and Transformers
            before 4.53 take a layer's kind from its index, not from the configuration.
        file_names: parameter -> its name in weight files, where that is another.
        ignored_weights: endings of tensors in published weight files that are no parameters.
    """

    model_type: str
    architecture: str
    layer_parameters: ParameterTable
    optional_parameters: Mapping[str, ParameterTable] = field(default_factory=dict)
    global_parameters: ParameterTable
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norms_after: Mapping[str, str] = field(default_factory=dict)
    centred_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    output: str = "lm_head"
    config_names: Mapping[str, str] = field(
        default_factory=lambda: {
            "num_layers": "num_hidden_layers",
            "hidden_size": "hidden_size",
            "intermediate_size": "intermediate_size",
            "num_heads": "num_attention_heads",
            "num_kv_heads": "num_key_value_heads",
            "head_dim": "head_dim",
        }
    )
    defaults: Mapping[str, Any] = field(default_factory=dict)
    heads: HeadRule = "free"
    heads_by_switch: Mapping[str, HeadRule] = field(default_factory=dict)
    layer_period: int = 1
    file_names: Mapping[str, str] = field(default_factory=dict)
    ignored_weights: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def layer_table(self, switches: Iterable[str]) -> dict[str, tuple[Axis, ...]]:
        """The parameters of a layer where the configuration has these switches on."""
        table = dict(self.layer_parameters)
        for switch in switches:
            table |= self.optional_parameters[switch]
        return table

    def global_table(self, *, tied: bool) -> dict[str, tuple[Axis, ...]]:
        """The parameters outside the layers; a tied output matrix is not listed a second time."""
        shared = {f"{self.output}.weight"} if tied else set()
        return {name: axes for name, axes in self.global_parameters.items() if name not in shared}

    def full_table(
        self, num_layers: int, switches: Iterable[str], *, tied: bool
    ) -> dict[str, tuple[Axis, ...]]:
        """All parameters of a model by their full names."""
        layer = self.layer_table(switches)
        table = {
            f"{self.layers}.{index}.{name}": axes
            for index in range(num_layers)
            for name, axes in layer.items()
        }
        return self.global_table(tied=tied) | table

    def file_name(self, parameter: str) -> str:
        """The name that a parameter has in weight files."""
        return self.file_names.get(parameter, parameter)

    def head_rule(self, switches: Iterable[str]) -> HeadRule:
        """What the configuration demands of hidden size and heads."""
        rules = [self.heads_by_switch[s] for s in switches if s in self.heads_by_switch]
        return rules[0] if rules else self.heads


def count_parameters(table: ParameterTable, sizes: Mapping[Axis, Any]) -> Any:
    """Count parameters: the sum over a table of the product of the sizes along each parameter.

    Args:
        table: parameters to count.
        sizes: axis -> its size, for those that are not made of others: integers, or tensors of
            expected sizes that broadcast together.

    Returns:
        The number of parameters, of the type that the sizes have.
    """
    sizes = with_stacked(sizes)
    return sum(prod(sizes[axis] for axis in axes) for axes in table.values())


def with_stacked(sizes: Mapping[Axis, Any]) -> dict[Axis, Any]:
    """Complete the sizes of axes by those that are made of others."""
    return {**sizes, **{axis: sum(sizes[p] for p in parts) for axis, parts in STACKED.items()}}


def _biases(modules: ParameterTable) -> ParameterTable:
    """The biases of modules: module -> its output axis."""
    return {f"{module}.bias": axes for module, axes in modules.items()}


_GLOBAL: ParameterTable = {
    "model.embed_tokens.weight": ("vocab", "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": ("vocab", "hidden"),
}
_ATTENTION: ParameterTable = {
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.k_proj.weight": ("key", "hidden"),
    "self_attn.v_proj.weight": ("key", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "query"),
}
_MLP: ParameterTable = {
    "mlp.gate_proj.weight": ("intermediate", "hidden"),
    "mlp.up_proj.weight": ("intermediate", "hidden"),
    "mlp.down_proj.weight": ("hidden", "intermediate"),
}
_TWO_NORMS: ParameterTable = {
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
}
_HEAD_NORMS: ParameterTable = {
    "self_attn.q_norm.weight": ("head_dim",),
    "self_attn.k_norm.weight": ("head_dim",),
}
_LAYER: ParameterTable = {**_ATTENTION, **_MLP, **_TWO_NORMS}
_QKV_BIAS = _biases(
    {"self_attn.q_proj": ("query",), "self_attn.k_proj": ("key",), "self_attn.v_proj": ("key",)}
)
_ATTENTION_BIAS = {**_QKV_BIAS, **_biases({"self_attn.o_proj": ("hidden",)})}
_MLP_BIAS = _biases(
    {
        "mlp.gate_proj": ("intermediate",),
        "mlp.up_proj": ("intermediate",),
        "mlp.down_proj": ("hidden",),
    }
)
_NORMS_AFTER = {
    "post_attention_layernorm": "self_attn.o_proj",
    "post_feedforward_layernorm": "mlp.down_proj",
}

_FAMILIES = (
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        layer_parameters=_LAYER,
        optional_parameters={"attention_bias": _ATTENTION_BIAS, "mlp_bias": _MLP_BIAS},
        global_parameters=_GLOBAL,
        heads="divide",
    ),
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        layer_parameters=_LAYER,
        global_parameters=_GLOBAL,
        defaults={"num_key_value_heads": 8},
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        layer_parameters={**_LAYER, **_QKV_BIAS},
        global_parameters=_GLOBAL,
        defaults={"num_key_value_heads": 32},
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        layer_parameters={**_LAYER, **_HEAD_NORMS},
        optional_parameters={"attention_bias": _ATTENTION_BIAS},
        global_parameters=_GLOBAL,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    Family(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        layer_parameters={
            **_LAYER,
            "pre_feedforward_layernorm.weight": ("hidden",),
            "post_feedforward_layernorm.weight": ("hidden",),
        },
        optional_parameters={"attention_bias": _ATTENTION_BIAS},
        global_parameters=_GLOBAL,
        norms=("input_layernorm", "pre_feedforward_layernorm"),
        norms_after=_NORMS_AFTER,
        norm_offset=1.0,
        scaled_embedding=True,
        defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
        heads="divide",
        layer_period=2,
    ),
    Family(
        model_type="olmo2",
        architecture="Olmo2ForCausalLM",
        layer_parameters={
            **_ATTENTION,
            **_MLP,
            "self_attn.q_norm.weight": ("query",),
            "self_attn.k_norm.weight": ("key",),
            "post_attention_layernorm.weight": ("hidden",),
            "post_feedforward_layernorm.weight": ("hidden",),
        },
        optional_parameters={"attention_bias": _ATTENTION_BIAS},
        global_parameters=_GLOBAL,
        norms=(),
        norms_after={
            **_NORMS_AFTER,
            "self_attn.q_norm": "self_attn.q_proj",
            "self_attn.k_norm": "self_attn.k_proj",
        },
    ),
    Family(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        layer_parameters={
            "self_attn.qkv_proj.weight": ("query_key_value", "hidden"),
            "self_attn.o_proj.weight": ("hidden", "query"),
            "mlp.gate_up_proj.weight": ("gate_up", "hidden"),
            "mlp.down_proj.weight": ("hidden", "intermediate"),
            **_TWO_NORMS,
        },
        # Its rotary factors are as many as half of hidden size / heads.
        optional_parameters={"longrope": {}},
        heads_by_switch={"longrope": "fill"},
        global_parameters=_GLOBAL,
    ),
    Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        layer_parameters={
            "attention.query_key_value.weight": ("head_triples", "hidden"),
            "attention.dense.weight": ("hidden", "query"),
            "mlp.dense_h_to_4h.weight": ("intermediate", "hidden"),
            "mlp.dense_4h_to_h.weight": ("hidden", "intermediate"),
            **_biases({"mlp.dense_h_to_4h": ("intermediate",), "mlp.dense_4h_to_h": ("hidden",)}),
            **_TWO_NORMS,
            **_biases({"input_layernorm": ("hidden",), "post_attention_layernorm": ("hidden",)}),
        },
        optional_parameters={
            "attention_bias": _biases(
                {"attention.query_key_value": ("head_triples",), "attention.dense": ("hidden",)}
            )
        },
        global_parameters={
            "gpt_neox.embed_in.weight": ("vocab", "hidden"),
            "gpt_neox.final_layer_norm.weight": ("hidden",),
            "gpt_neox.final_layer_norm.bias": ("hidden",),
            "lm_head.weight": ("vocab", "hidden"),
        },
        writers=("attention.dense", "mlp.dense_4h_to_h"),
        centred_norms=True,
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        config_names={
            "num_layers": "num_hidden_layers",
            "hidden_size": "hidden_size",
            "intermediate_size": "intermediate_size",
            "num_heads": "num_attention_heads",
        },
        defaults={"attention_bias": True},
        heads="fill",
        file_names={"lm_head.weight": "embed_out.weight"},
        ignored_weights=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    ),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}
"""`model_type` -> family, for every family that can be pruned."""
NOT_CAUSAL = {"is_encoder_decoder": True, "is_causal": False, "use_bidirectional_attention": True}
"""Fields of a configuration, and the value that makes the model no causal one. Transformers builds
it all the same; without the causal mask a token sees the one to predict, and no loss says so."""


def unknown_family(model_type: object) -> BadInput:
    """The error for a model type that no family has."""
    return BadInput(
        f"model_type {model_type!r} is not a family that can be pruned; known families: "
        f"{', '.join(FAMILIES)}; docs/families.md says how to add one"
    )


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a model.

    Args:
        config: a Transformers configuration as a dictionary (a parsed config.json).

    Raises:
        BadInput: the model is no causal language model, or of a family that has no table.
    """
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        raise BadInput(f"architectures must be a list of class names, not {architectures!r}")
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    names = ", ".join(map(str, architectures))
    causal = any("CausalLM" in str(name) or "LMHead" in str(name) for name in architectures)
    field = next((name for name, value in NOT_CAUSAL.items() if config.get(name) == value), None)
    if field or (architectures and not causal):
        found = f"a model with {field} {str(NOT_CAUSAL[field]).lower()}" if field else names
        raise BadInput(
            f"{found} is not a causal language model; give a model whose architecture is one of "
            f"{', '.join(f.architecture for f in FAMILIES.values())}"
        )
    if family is None:
        raise unknown_family(model_type)
    if architectures and family.architecture not in architectures:
        raise BadInput(f"architecture {names} is not {family.model_type}'s {family.architecture}")
    return family


def undoes_centring(config: Mapping[str, object]) -> str:
    """Say why masks over hidden dimensions do not go with a model's dropout, or nothing.

    Under masks, what is written into the residual stream is centred over the kept dimensions so
    that LayerNorm comes out right (see `drpruning.pruning.attachment`). Dropout comes between the
    two and shifts the mean again.
    """
    rate = config.get("hidden_dropout")
    if not rate or not family_of(config).centred_norms:
        return ""
    return f"hidden_dropout {rate} does not go with masks over hidden dimensions; set it to 0"
