"""Values in a config.json with which no model can be built, or none that computes numbers.

What the sizes allow, `ModelShape` checks; this module checks everything else that the forward pass
of a known family reads, without torch. Transformers itself accepts most of these values: the model
is built and then fails, or returns NaN, after the data have been prepared.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from drpruning.common.errors import BadInput, shown
from drpruning.pruning import ModelShape
from drpruning.pruning.families import NOT_CAUSAL

LONGEST = 2**31 - 1
"""Positions, at most: they are counted in 32 bits."""
ACTIVATIONS = frozenset({
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
    "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish",
    "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
})  # fmt: skip
"""Transformers' activation functions, without those that have parameters of their own."""
_DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "double")
"""Names of torch's types that a model can be built in."""


class _Number(NamedTuple):
    """The numbers that a field can be.

    Attributes:
        low: Smallest.
        high: Largest.
        whole: Whether only whole numbers will do.
        optional: Whether null, which means that there is none, will do too.
        below: Whether `high` itself will not do.
    """

    low: float
    high: float
    whole: bool = False
    optional: bool = False
    below: bool = False

    def refusal(self, value: object) -> str:
        """What the value must be, or nothing where it is that."""
        if value is None and self.optional:
            return ""
        is_number = isinstance(value, int if self.whole else int | float)
        if is_number and not isinstance(value, bool):
            within = self.low <= value <= self.high  # type: ignore[operator]
            if within and not (self.below and value == self.high):
                return ""
        kind = "a whole number" if self.whole else "a number"
        end = f"to below {self.high:,}" if self.below else f"to {self.high:,}"
        return f"{kind} from {self.low:,} {end}"


_DROPOUT = _Number(0, 1, below=True)
_LENGTH = _Number(1, LONGEST, whole=True)
_WINDOW = _Number(1, LONGEST, whole=True, optional=True)
# float32 has no smaller squares, and without an epsilon a token whose embedding is zero (padding
# often is) becomes NaN in its first norm.
_EPSILON = _Number(1e-30, 1)
_POSITIVE = _Number(1e-6, 10**9)
_OPTIONAL = _Number(1e-6, 10**9, optional=True)
# A rotary frequency is base^-x with x in [0, 1). For base 0 it is infinite, for a negative one NaN;
# below 1 it would grow from one dimension to the next.
_BASE = _Number(1, 1e30)
_SHARE = _Number(0, 1)

_ALL_FAMILIES = {
    "attention_dropout": _DROPOUT,
    "initializer_range": _SHARE,
    "max_position_embeddings": _LENGTH,
    "rms_norm_eps": _EPSILON,
    "rope_theta": _BASE,
}
_BY_FAMILY: dict[str, dict[str, _Number]] = {
    "mistral": {"sliding_window": _WINDOW},
    "gemma2": {
        "sliding_window": _LENGTH,
        "query_pre_attn_scalar": _LENGTH,
        "final_logit_softcapping": _OPTIONAL,
        "attn_logit_softcapping": _OPTIONAL,
    },
    "phi3": {
        "sliding_window": _WINDOW,
        "resid_pdrop": _DROPOUT,
        "embd_pdrop": _DROPOUT,
        "partial_rotary_factor": _SHARE,
        "original_max_position_embeddings": _LENGTH,
    },
    "gpt_neox": {
        "layer_norm_eps": _EPSILON,
        "hidden_dropout": _DROPOUT,
        "rotary_emb_base": _BASE,
        "rotary_pct": _SHARE,
    },
}
_SWITCHED_WINDOW = {"qwen2", "qwen3"}
"""Families that look at `sliding_window` only where `use_sliding_window` is true."""
_PARTIAL_ROTARY = {"phi3": ("partial_rotary_factor", 1.0), "gpt_neox": ("rotary_pct", 0.25)}
"""Families that can rotate a part of every head: what says which part, and its default."""

_SCALINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "proportional": (),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""Type of rotary scaling -> the fields that it needs."""
_SCALING_NUMBERS = {
    "rope_theta": _BASE,
    "partial_rotary_factor": _SHARE,
    "original_max_position_embeddings": _LENGTH,
    "factor": _POSITIVE,
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), _OPTIONAL),
}
_FACTOR_LISTS = ("short_factor", "long_factor")


def check_config_values(config: Mapping[str, Any], shape: ModelShape, origin: str) -> None:
    """Refuse a config with a value that no model of its family can compute with.

    Args:
        config: The content of a config.json.
        shape: The shape that it describes.
        origin: What gave the config, for the message.

    Raises:
        BadInput: A value is of the wrong type or outside its range; the message names the first.
    """
    for name, wanted, value in _refused(config, shape):
        raise BadInput(f"{origin}: the config's {name} must be {wanted}, not {shown(value)}")


_Refused = Iterator[tuple[str, str, object]]
"""Field, what it must be, and what it is."""


def _refused(config: Mapping[str, Any], shape: ModelShape) -> _Refused:
    family = shape.model_type
    numbers = _ALL_FAMILIES | _BY_FAMILY.get(family, {})
    if family in _SWITCHED_WINDOW and config.get("use_sliding_window"):
        numbers["sliding_window"] = _WINDOW
    if family == "gpt_neox":  # its rotary base has another name, and so have its norms' epsilon
        del numbers["rms_norm_eps"], numbers["rope_theta"]
    else:
        vocabulary = shape.vocab_size  # counted from the end where negative, as in a list
        numbers["pad_token_id"] = _Number(-vocabulary, vocabulary - 1, whole=True, optional=True)
    scalings = list(_scalings(config))
    if any(isinstance(p, Mapping) and "rope_theta" in p for _, p in scalings):
        for name in ("rope_theta", "rotary_emb_base"):  # not used then
            numbers.pop(name, None)
    yield from _refused_numbers(config, numbers)
    yield from _refused_words(config)
    activation = "hidden_activation" if family == "gemma2" else "hidden_act"
    value = config.get(activation, "silu")
    if not isinstance(value, str) or value not in ACTIVATIONS:
        yield activation, f"one of {', '.join(sorted(ACTIVATIONS))}", value
    yield from _refused_layer_types(config, shape, numbers)
    for name, parameters in scalings:
        if isinstance(parameters, Mapping):
            yield from _refused_scaling(name, parameters, config, shape)
        else:
            yield name, "an object or null", parameters
    if not scalings:
        yield from _refused_rotation({}, config, shape)


def _refused_words(config: Mapping[str, Any]) -> _Refused:
    for name in ("dtype", "torch_dtype"):
        if (dtype := config.get(name)) is not None and dtype not in _DTYPES:
            yield name, f"one of {', '.join(_DTYPES)}", dtype
    for name in NOT_CAUSAL:  # the text "no" must not decide whether the model is a causal one
        if not isinstance(value := config.get(name), bool | None):
            yield name, "true or false", value


def _scalings(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Name and content of the rotary parameters: one set, or one for each type of layer."""
    for name in ("rope_scaling", "rope_parameters"):
        section = config.get(name)
        items = section.items() if isinstance(section, Mapping) else ()
        nested = [(f"{name}.{kind}", value) for kind, value in items if isinstance(value, Mapping)]
        if nested:
            yield from nested
        elif section is not None:
            yield name, section


def _refused_numbers(
    section: Mapping[str, Any], numbers: Mapping[str, _Number], place: str = ""
) -> _Refused:
    for name, number in numbers.items():
        if name in section and (wanted := number.refusal(section[name])):
            yield place + name, wanted, section[name]


def _refused_layer_types(
    config: Mapping[str, Any], shape: ModelShape, numbers: Mapping[str, _Number]
) -> _Refused:
    kinds = config.get("layer_types")
    if kinds is None:
        return
    known = {"full_attention", "sliding_attention"}
    valid = isinstance(kinds, list | tuple) and all(
        isinstance(kind, str) and kind in known for kind in kinds
    )
    if not valid or len(kinds) != shape.num_layers:
        wanted = (
            f"a list of {' or '.join(sorted(known))}, one for each of {shape.num_layers} layers"
        )
        yield "layer_types", wanted, kinds
    elif "sliding_attention" in kinds and (
        "sliding_window" not in numbers or config.get("sliding_window", 1) is None
    ):
        wanted = "full_attention in every layer, as the model has no sliding_window"
        yield "layer_types", wanted, kinds


def _refused_scaling(
    name: str, parameters: Mapping[str, Any], config: Mapping[str, Any], shape: ModelShape
) -> _Refused:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "su":
        place = "rope_type" if "rope_type" in parameters else "type"
        yield f"{name}.{place}", "longrope, as Transformers calls this scaling now", kind
        return
    if not isinstance(kind, str) or kind not in _SCALINGS:
        yield f"{name}.rope_type", f"one of {', '.join(_SCALINGS)}", kind
        return
    needed = _FACTOR_LISTS if "longrope" in shape.switches else _SCALINGS[kind]
    for field in needed:
        if parameters.get(field) is None:
            yield f"{name}.{field}", f"given, as the type of scaling is {kind}", None
    yield from _refused_numbers(parameters, _SCALING_NUMBERS, f"{name}.")
    yield from _refused_rotation(parameters, config, shape, name)
    low, high = parameters.get("low_freq_factor", 0), parameters.get("high_freq_factor", 1)
    if kind == "llama3" and not low < high:
        yield f"{name}.high_freq_factor", f"above low_freq_factor ({low})", high


def _refused_rotation(
    parameters: Mapping[str, Any], config: Mapping[str, Any], shape: ModelShape, name: str = ""
) -> _Refused:
    """Rotary dimensions come in pairs, and every pair has its factor."""
    field, default = _PARTIAL_ROTARY.get(shape.model_type, ("", 1.0))
    part = parameters.get("partial_rotary_factor", config.get(field, default)) if field else 1.0
    if not isinstance(part, int | float):
        return  # refused as a number already
    rotated = int(shape.head_dim * part)
    # Of a head of size 1, queries and keys are repeated: it works, in models made for tests.
    if shape.head_dim % 2 and rotated == shape.head_dim > 1:
        yield "head_dim", "even, because its dimensions are rotated in pairs", shape.head_dim
    for key in _FACTOR_LISTS:
        factors = parameters.get(key)
        if factors is None:
            continue
        if not isinstance(factors, list | tuple) or any(map(_POSITIVE.refusal, factors)):
            yield f"{name}.{key}", "a list of positive numbers", factors
        elif len(factors) != rotated // 2:
            yield f"{name}.{key}", f"{rotated // 2} numbers", f"{len(factors)} numbers"
