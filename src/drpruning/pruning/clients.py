"""Shapes that Transformers computes but other software does not. Importable without torch.

Each entry was seen with the versions in docs/clients.md; tests/clients compares those on heads with
what the programs themselves do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from drpruning.pruning.shapes import ModelShape

_DOES_NOT_LOAD = "does not load it"
_IS_WRONG = "computes wrong numbers from it without a word"
_HEADS_FILL: Mapping[str, Mapping[str, str]] = {
    "llama": {"CTranslate2": _IS_WRONG},
    "qwen2": {
        "llama.cpp": _DOES_NOT_LOAD,
        "vLLM": _DOES_NOT_LOAD,
        "CTranslate2": _IS_WRONG,
    },
    "olmo2": {"llama.cpp": _DOES_NOT_LOAD},
    "phi3": {"llama.cpp": _DOES_NOT_LOAD},
}
"""Family -> the clients that take heads x head size to be the hidden size, and what becomes of a
model in which it is not."""
BLOCKS = {
    32: "llama.cpp leaves the weights that read it unquantized",
    64: "bitsandbytes' nf4 fails or computes wrong numbers on a CPU from the weights that read it",
    256: "llama.cpp replaces k-quants (Q4_K_M) of the weights that read it by larger types",
}
"""Multiple that quantized weights need along their input -> what follows where it is none."""


@dataclass(frozen=True, kw_only=True)
class ClientLimit:
    """A rule that a shape breaks.

    Attributes:
        rule: what the clients demand.
        problem: what the shape has instead.
        effects: what each client does with such a model.
        severe: whether a client does not load the model, or computes something else.
    """

    rule: str
    problem: str = field(compare=False)
    effects: tuple[str, ...]
    severe: bool


def client_limits(shape: ModelShape) -> list[ClientLimit]:
    """The rules of other software that a shape breaks; an empty list where all of them take it."""
    limits = []
    widths = _widths(shape)
    clients = _HEADS_FILL.get(shape.model_type, {})
    if clients and widths["heads x head size"] != shape.hidden_size:
        limits.append(
            ClientLimit(
                rule="heads x head size is the hidden size",
                problem=f"heads x head size ({shape.num_heads} x {shape.head_dim}) is not the "
                f"hidden size ({shape.hidden_size:,})",
                effects=tuple(f"{client} {effect}" for client, effect in clients.items()),
                severe=True,
            )
        )
    for multiple, effect in BLOCKS.items():
        limits += [
            ClientLimit(
                rule=f"{name} is a multiple of {multiple}",
                problem=f"{name} {width:,} is no multiple of {multiple}",
                effects=(effect,),
                severe=False,
            )
            for name, width in widths.items()
            if width % multiple
        ]
    return limits


def new_limits(source: ModelShape, target: ModelShape) -> list[ClientLimit]:
    """The rules that a target breaks and the source, which people could use, does not."""
    known = client_limits(source)
    return [limit for limit in client_limits(target) if limit not in known]


def attention_by_index(source: ModelShape, layers: Sequence[int] | None = None) -> str | None:
    """Say what follows where sliding and full attention do not take turns any more (Gemma 2).

    Args:
        source: the model that is cut.
        layers: those that stay; absent: any that a target of fewer layers may keep.

    Returns:
        None where the kinds of layers stay in turn.
    """
    period = source.family.layer_period
    if layers is None:
        in_turn = period == source.layer_period
        problem = (
            f"with {source.num_layers} layers in the source, single ones are cut, and sliding and "
            "full attention may not take turns any more"
        )
    else:
        in_turn = all(layer % period == place % period for place, layer in enumerate(layers))
        problem = (
            "sliding and full attention do not take turns in the layers that stay "
            f"({', '.join(map(str, layers))})"
        )
    clients = "llama.cpp and Transformers before 4.53 take a layer's attention from its index"
    return None if in_turn else f"{problem}: {clients} and would compute something else"


def _widths(shape: ModelShape) -> dict[str, int]:
    """The inputs of a layer's linear modules, by what they are."""
    return {
        "hidden size": shape.hidden_size,
        "intermediate size": shape.intermediate_size,
        "heads x head size": shape.num_heads * shape.head_dim,
    }


def heads_must_fill(shape: ModelShape) -> bool:
    """Whether a client takes a model of this family only if its heads fill the hidden size."""
    return shape.model_type in _HEADS_FILL


def heads_that_fill(source: ModelShape, hidden_size: int) -> tuple[int, int] | None:
    """The heads and key-value heads that fill a hidden size; None where none can be cut out.

    Of several numbers of key-value heads the one that is nearest to the source's queries per group.
    """
    heads, rest = divmod(hidden_size, source.head_dim)
    if rest or not 1 <= heads <= source.num_heads:
        return None
    groups = [
        count
        for count in range(1, source.num_kv_heads + 1)
        if not source.heads_refusal(heads, count, hidden_size)
    ]
    if not groups:
        return None
    return heads, min(groups, key=lambda count: source.queries_per_group - heads // count)
