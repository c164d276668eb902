"""The config.json of a result, as readers of published models expect it.

Transformers 5 gathers all rotary settings in `rope_parameters` and calls the type `dtype`. Other
readers (Transformers 4, llama.cpp, inference servers) know neither: they take a default in their
place and compute something else without a word. So both forms are written. Where both are there,
Transformers 5 takes `rope_scaling` before `rope_parameters`, so each of them has to be complete.
Importable without torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drpruning.pruning import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOT_KEPT = {
    "auto_map", "quantization_config", "quantization", "transformers_weights", "_name_or_path",
    "_commit_hash",
}  # fmt: skip
"""Fields that name what a result does not have: code, other weights, a place."""
_BY_LAYER = ("layer_types", "max_window_layers")
"""Fields that surgery adapts to the layers that stay."""
_READ_AS_WRITTEN = {
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "layer_norm_eps",
    "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
    "use_parallel_residual",
}  # fmt: skip
"""Fields that a source may leave out, because Transformers has a default for them, and that a
reader without its classes (llama.cpp's converter) does not find then."""
_ROTARY_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
"""Family -> its own names for the rotary base and the part of a head that is rotated."""
_TYPE_ONLY = {"phi3", "olmo2"}
"""Families for which Transformers 4 allows in `rope_scaling` exactly `type` and the two lists of
longrope (Phi-3), or `type` and a factor that is no whole number (OLMo 2)."""


def published_config(
    original: Mapping[str, Any], model: "PreTrainedModel", dtype: str
) -> dict[str, Any]:
    """The source's config.json with a result's dimensions, and its rotary settings in both forms.

    Args:
        original: Content of the source's config.json; what is not changed here stays as it is, and
            what other readers need and it leaves out is added.
        model: The result.
        dtype: Type of the weights as they are written, such as `bfloat16`.
    """
    shape = ModelShape.of(model)
    current = model.config.to_dict()
    output = f"{shape.family.output}.weight"
    config = {key: value for key, value in original.items() if key not in _NOT_KEPT}
    left_out = _READ_AS_WRITTEN & current.keys() - config.keys()
    config |= {key: current[key] for key in sorted(left_out) if current[key] is not None}
    config |= {"architectures": [shape.family.architecture], "model_type": shape.model_type}
    config |= shape.config_fields()
    config |= {key: current[key] for key in _BY_LAYER if current.get(key) is not None}
    # Whether the matrices are one is decided by the weights that are written, not by the setting.
    config["tie_word_embeddings"] = output not in dict(model.named_parameters())
    config["dtype"] = config["torch_dtype"] = dtype
    return config | _rotary_fields(original, current)


def _rotary_fields(original: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a model in Transformers 5's form and in the one before."""
    family = current["model_type"]
    # Read from `rope_scaling`, they can have their type twice, by its older name too.
    parameters = {k: v for k, v in current["rope_parameters"].items() if k != "type"}
    base, part = _ROTARY_NAMES.get(family, ("rope_theta", "partial_rotary_factor"))
    fields = {"rope_parameters": parameters, base: parameters["rope_theta"]}
    if "partial_rotary_factor" in parameters:
        fields[part] = parameters["partial_rotary_factor"]
    if parameters["rope_type"] == "longrope":
        length = "original_max_position_embeddings"
        fields[length] = parameters[length]
    if not original.get("rope_scaling") and parameters["rope_type"] != "default":
        fields["rope_scaling"] = _rope_scaling(family, parameters, current)
    return fields


def _rope_scaling(
    family: str, parameters: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, Any]:
    """`rope_scaling` of Transformers 4, made from `rope_parameters`."""
    rest = dict(parameters)
    kind = rest.pop("rope_type")
    for elsewhere in ("rope_theta", "partial_rotary_factor"):
        rest.pop(elsewhere, None)
    if family == "phi3":  # both versions read this one beside `rope_scaling`
        length = rest.pop("original_max_position_embeddings", None)
        # Transformers 5 asks for this one, and 4 takes what it says from the two lengths.
        if length and rest.get("factor") == current["max_position_embeddings"] / length:
            del rest["factor"]
    if family == "olmo2":
        rest["factor"] = float(rest["factor"])
    return {"type" if family in _TYPE_ONLY else "rope_type": kind, **rest}
