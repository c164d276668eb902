"""Model families as tables: where the parts are and along which axes they are cut.

Counting, gating, folding and slicing are all derived from a `Family`; nothing else in the package
knows a parameter's name. Importable without torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from drpruning.errors import BadInput

Axis = Literal["vocab", "hidden", "query", "key", "intermediate"]
"""What one dimension of a parameter runs over. `query` is query heads x head size, `key` is
key-value heads x head size (keys and values alike)."""

ParameterTable = Mapping[str, tuple[Axis, ...]]
"""Parameter name -> the axis of each of its dimensions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Where the parts of a model family are and how they couple.

    Attributes:
        model_type: `model_type` of the Transformers configuration.
        architecture: class name of the causal language model.
        layer_parameters: parameters of every layer, named within the layer.
        optional_parameters: configuration switch -> layer parameters it adds.
        global_parameters: parameters outside the layers.
        writers: modules of a layer that write into the residual stream; the second axis of their
            weight is the one whose units they read.
        norms: modules of a layer that read the residual stream, root-mean-square norms.
        embedding: module whose output starts the residual stream.
        layers: the list of layers.
        final_norm: the norm after the last layer.
        output: the output projection, the embedding's own matrix where embeddings are tied.
        heads_divide_hidden: whether the family's configuration refuses a hidden size that is not a
            multiple of the number of heads, even where the head size is given.
    """

    model_type: str
    architecture: str
    layer_parameters: ParameterTable
    optional_parameters: Mapping[str, ParameterTable] = field(default_factory=dict)
    global_parameters: ParameterTable
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    output: str = "lm_head"
    heads_divide_hidden: bool

    def layer_table(self, switches: Iterable[str]) -> dict[str, tuple[Axis, ...]]:
        """Parameters of a layer where the configuration has these switches on."""
        table = dict(self.layer_parameters)
        for switch in switches:
            table |= self.optional_parameters[switch]
        return table

    def global_table(self, *, tied: bool) -> dict[str, tuple[Axis, ...]]:
        """Parameters outside the layers; a tied output matrix is the embedding's, not a second."""
        shared = {f"{self.output}.weight"} if tied else set()
        return {name: axes for name, axes in self.global_parameters.items() if name not in shared}

    def full_table(
        self, num_layers: int, switches: Iterable[str], *, tied: bool
    ) -> dict[str, tuple[Axis, ...]]:
        """Every parameter of a model by its full name."""
        layer = self.layer_table(switches)
        table = {
            f"{self.layers}.{index}.{name}": axes
            for index in range(num_layers)
            for name, axes in layer.items()
        }
        return self.global_table(tied=tied) | table


def count_parameters(table: ParameterTable, sizes: Mapping[Axis, Any]) -> Any:
    """Sum over a table of the product of the sizes along each parameter.

    Args:
        table: parameters to count.
        sizes: axis -> its size: integers, or tensors of expected sizes that broadcast together.

    Returns:
        The number of parameters, of the type that the sizes have.
    """
    return sum(prod(sizes[axis] for axis in axes) for axes in table.values())


_GLOBAL: ParameterTable = {
    "model.embed_tokens.weight": ("vocab", "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": ("vocab", "hidden"),
}
_LAYER: ParameterTable = {
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.k_proj.weight": ("key", "hidden"),
    "self_attn.v_proj.weight": ("key", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "query"),
    "mlp.gate_proj.weight": ("intermediate", "hidden"),
    "mlp.up_proj.weight": ("intermediate", "hidden"),
    "mlp.down_proj.weight": ("hidden", "intermediate"),
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
}
_QKV_BIAS: ParameterTable = {
    "self_attn.q_proj.bias": ("query",),
    "self_attn.k_proj.bias": ("key",),
    "self_attn.v_proj.bias": ("key",),
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")

_LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    layer_parameters=_LAYER,
    optional_parameters={
        "attention_bias": {**_QKV_BIAS, "self_attn.o_proj.bias": ("hidden",)},
        "mlp_bias": {
            "mlp.gate_proj.bias": ("intermediate",),
            "mlp.up_proj.bias": ("intermediate",),
            "mlp.down_proj.bias": ("hidden",),
        },
    },
    global_parameters=_GLOBAL,
    writers=_WRITERS,
    norms=_NORMS,
    heads_divide_hidden=True,
)
_QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    layer_parameters={**_LAYER, **_QKV_BIAS},
    global_parameters=_GLOBAL,
    writers=_WRITERS,
    norms=_NORMS,
    heads_divide_hidden=False,
)

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (_LLAMA, _QWEN2)}
"""`model_type` -> family, for every family that can be pruned."""


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a model.

    Args:
        config: a Transformers configuration as a dictionary (a parsed config.json).

    Raises:
        BadInput: no causal language model, or a family that has no table.
    """
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        raise BadInput(f"architectures must be a list of class names, not {architectures!r}")
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    names = ", ".join(map(str, architectures))
    causal = any("CausalLM" in str(name) or "LMHead" in str(name) for name in architectures)
    if config.get("is_encoder_decoder") or (architectures and not causal):
        raise BadInput(
            f"{names or model_type} is not a causal language model; give a model whose "
            f"architecture is one of {', '.join(f.architecture for f in FAMILIES.values())}"
        )
    if family is None:
        raise BadInput(
            f"model_type {model_type!r} is not a family that can be pruned; "
            f"known families: {', '.join(FAMILIES)}"
        )
    if architectures and family.architecture not in architectures:
        raise BadInput(f"architecture {names} is not {family.model_type}'s {family.architecture}")
    return family
