"""Where masks touch a model: gates on its parameters and hooks on two activations.

Why the model's own norms stay right. Under masks a norm must compute what it will compute in the
cut model, where its mean runs over the k kept dimensions, but its code takes the mean over all n.
So what it reads is zero in the removed dimensions and multiplied by c = sqrt(n / k) in the others:
(1 / n) sum (c x)^2 = (1 / k) sum x^2, and the epsilon that is added to it stays right as well. The
factor c that is left in the norm's output is taken out of its weight.

- Norms that read the residual stream find it scaled because everything that writes into it is.
- Norms after a module (Gemma 2, OLMo 2) find the output of that module scaled.
- LayerNorm also takes a mean away. A constant that is added to all kept dimensions does not change
  what it computes, so every write is centred over them; then the mean over all n is zero, as is the
  one over the kept k.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from drpruning.pruning.families import Axis
from drpruning.pruning.gates import ActivationGate, Gate
from drpruning.pruning.masks import each_layer, heads_by_axis
from drpruning.pruning.shapes import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Role = Literal["read", "read bias", "write", "before", "after"]
"""What the rows of a parameter belong to: a norm that reads the residual stream (its weight, its
bias); a module that writes into the stream; a module that has a norm after it; such a norm."""

Factors = tuple[Tensor, ...] | None
"""One for each layer; None for ones."""


class _Gated(NamedTuple):
    gate: Gate
    layer: int
    rows: tuple[Role, Axis]
    columns: Axis | None


@dataclass
class Attachment:
    """The gates of one model.

    Attributes:
        model: the model itself, whatever wraps it later.
        shape: its shape.
        parameters: plain name of every gated parameter -> its module and its name there.
        embedding: on what the embedding returns.
        final_input: on what the final norm reads, where the stream is not scaled.
        norms_over_heads: whether a gated norm takes its mean over all heads together.
    """

    model: "PreTrainedModel"
    shape: ModelShape
    parameters: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    embedding: ActivationGate = field(default_factory=ActivationGate)
    final_input: ActivationGate = field(default_factory=ActivationGate)
    norms_over_heads: bool = False
    _gated: list[_Gated] = field(default_factory=list)

    def set(self, values: Mapping[str, Tensor], *, rescale: bool) -> None:
        """Put mask values where the model reads them.

        Args:
            values: granularity -> mask values; missing ones count as one.
            rescale: whether activations are scaled (and centred) so that norms come out right.
                False when the values are folded into a model whose removed parts are cut away next:
                its norms then see the kept dimensions alone.
        """
        # `scale` is c of the module's docstring, a constant: no gradient flows through the count of
        # kept dimensions. `stream` is the same where the residual stream itself carries it; it does
        # not in a family without norms that read the stream (OLMo 2), where only the final norm
        # does, and `final_input` scales what that one reads. `unit` is the direction of the mean
        # over the kept dimensions.
        family = self.shape.family
        hidden = values.get("hidden")
        scale = unit = None
        if hidden is not None and rescale:
            scale, kept = _scale(hidden)
            unit = kept / kept.sum().clamp(min=1).sqrt() if family.centred_norms else None
        stream = scale if family.norms else None
        self.embedding.factor = _times(hidden, stream)
        self.embedding.unit = unit
        self.final_input.factor = None if family.norms else scale
        layers = each_layer(values["layer"], self.shape) if "layer" in values else None
        rows = self._rows(hidden, layers, scale, stream)
        columns: dict[Axis, Factors] = {}
        if "head" in values or "group" in values:
            groups, heads = heads_by_axis(self._with_ones(values))
            columns["query"] = heads.repeat_interleave(self.shape.head_dim, dim=1).unbind()
            if rescale and self.norms_over_heads:
                rows |= self._head_rows({"key": groups, "query": heads})
        if "intermediate" in values:
            columns["intermediate"] = values["intermediate"].unbind()
        for gate, layer, role, axis in self._gated:
            factors = rows.get(role)
            gate.row = factors[layer] if factors else None
            factors = columns.get(axis) if axis else None
            gate.column = factors[layer] if factors else None
            gate.unit = unit if role[0] == "write" else None

    def _rows(
        self,
        hidden: Tensor | None,
        layer: Tensor | None,
        scale: Tensor | None,
        stream: Tensor | None,
    ) -> dict[tuple[Role, Axis], Factors]:
        """Factors on the rows that run over the hidden dimensions, by what they do.

        A norm that reads the stream gets `hidden / c` on its weight, because its input carries c,
        but `hidden` on its bias, which does not. A writer gets `hidden`, times c where the stream
        carries it, times its layer's value. A module with a norm after it only feeds that norm: it
        gets c on the kept dimensions and no mask value, because masks act after such a norm. The
        norm writes in its place: with `hidden * c / c` where the stream carries c, else with
        `hidden / c`, times its layer's value.
        """
        layers = self.shape.num_layers
        read = hidden if hidden is None or scale is None else hidden / scale
        rows: dict[tuple[Role, Axis], Factors] = {
            ("read", "hidden"): _each(read, layers),
            ("read bias", "hidden"): _each(hidden, layers),
            ("write", "hidden"): self._written(_times(hidden, stream), layer),
            ("after", "hidden"): self._written(read if stream is None else hidden, layer),
        }
        if scale is not None and hidden is not None:
            rows["before", "hidden"] = _each((hidden.detach() != 0) * scale, layers)
        return rows

    def _head_rows(self, heads: Mapping[Axis, Tensor]) -> dict[tuple[Role, Axis], Factors]:
        """Factors for norms over all heads together (OLMo 2): only the kept heads count.

        The mask values themselves act after the norm, on what is computed from it, so here only
        zeros matter: c on the rows of the kept heads, and 1 / c on the norm's weight.
        """
        rows: dict[tuple[Role, Axis], Factors] = {}
        for axis, values in heads.items():
            scale, kept = _scale(values)
            wide = kept.repeat_interleave(self.shape.head_dim, dim=1)
            rows["before", axis] = (wide * scale).unbind()
            rows["after", axis] = (1 / scale).expand_as(wide).unbind()
        return rows

    def _with_ones(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values with those of heads or groups, where one of the two has no mask, as ones."""
        shape = self.shape
        if not shape.grouped or {"head", "group"} <= values.keys():
            return dict(values)
        like = values["group"] if "group" in values else values["head"]
        sizes = (shape.num_layers, shape.num_kv_heads)
        return {
            "group": like.new_ones(sizes),
            "head": like.new_ones((*sizes, shape.queries_per_group)),
            **values,
        }

    def _written(self, hidden: Tensor | None, layer: Tensor | None) -> Factors:
        """Factors on what each layer writes: that of a dimension times that of the layer."""
        if layer is None:
            return _each(hidden, self.shape.num_layers)
        column = layer[:, None]
        both = column.expand(-1, self.shape.hidden_size) if hidden is None else column * hidden
        return both.unbind()


def attach(model: "PreTrainedModel", shape: ModelShape, masked: set[str]) -> Attachment:
    """Put gates on a model's parameters, in place: they become parametrized.

    Args:
        model: a model without masks.
        shape: its shape.
        masked: granularities that have masks.
    """
    family, attachment = shape.family, Attachment(model, shape)
    table = family.layer_table(shape.switches)
    by_axis: dict[Axis, set[str]] = {
        "hidden": {"hidden"},
        "intermediate": {"intermediate"},
        "query": {"head", "group"},
        "key": {"group"} if shape.grouped else {"head"},
    }

    def gate(module: str, layer: int, rows: tuple[Role, Axis], columns: Axis | None) -> None:
        owner = model.get_submodule(module)
        for name in ("weight", "bias"):
            if getattr(owner, name, None) is None:
                continue
            role, axis = rows
            offset = family.norm_offset if role in {"read", "after"} else 0.0
            parametrization = Gate(offset)
            parametrize.register_parametrization(owner, name, parametrization, unsafe=True)
            attachment.parameters[f"{module}.{name}"] = (owner, name)
            if name == "bias":
                role, columns = ("read bias" if role == "read" else role), None
            attachment._gated.append(_Gated(parametrization, layer, (role, axis), columns))
        _share_class(owner)

    before = tuple(family.norms_after.values())
    for layer in range(shape.num_layers):
        prefix = f"{family.layers}.{layer}."
        for module in dict.fromkeys((*family.writers, *before)):
            columns = table[f"{module}.weight"][1] if module in family.writers else None
            axis = table[f"{module}.weight"][0]
            role: Role = "before" if module in before else "write"
            causes = by_axis[axis] | (by_axis[columns] if columns else set())
            if masked & (causes | ({"layer"} if role == "write" else set())):
                gate(prefix + module, layer, (role, axis), columns)
        for norm in family.norms_after:
            axis = table[f"{norm}.weight"][0]
            if masked & (by_axis[axis] | ({"layer"} if axis == "hidden" else set())):
                gate(prefix + norm, layer, ("after", axis), None)
                attachment.norms_over_heads |= axis in {"query", "key"}
        if "hidden" in masked:
            for norm in family.norms:
                gate(prefix + norm, layer, ("read", "hidden"), None)
    if "hidden" in masked:
        gate(family.final_norm, 0, ("read", "hidden"), None)
        embedding, final_norm = attachment.embedding, attachment.final_input
        model.get_submodule(family.embedding).register_forward_hook(embedding.on_output)
        if not family.norms:
            final = model.get_submodule(family.final_norm)
            final.register_forward_pre_hook(final_norm.on_input)
    return attachment


_shared_classes: dict[tuple[type, tuple[str, ...]], type] = {}


def _share_class(module: nn.Module) -> None:
    """Give all modules that are parametrized alike one class, in place of one for each module.

    `torch.compile` asks for the type of a module, so what it has compiled for one layer is then
    valid for all of them, where it would otherwise compile every layer.
    """
    gated = type(module)
    names = [name for name in ("weight", "bias") if parametrize.is_parametrized(module, name)]
    key = (gated.__bases__[0], tuple(names))
    module.__class__ = _shared_classes.setdefault(key, gated)


def plain_name(name: str) -> str:
    """The name that a parameter of a masked model has without masks."""
    return name.replace(".parametrizations.", ".").removesuffix(".original")


def _scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(all / kept) along the last dimension, [..., 1], and what is kept as 0.0 and 1.0."""
    kept = (values.detach() != 0).to(values.dtype)
    scale = (values.shape[-1] / kept.sum(-1, keepdim=True).clamp(min=1)).sqrt()
    return scale, kept


def _times(factor: Tensor | None, scale: Tensor | None) -> Tensor | None:
    return factor if factor is None or scale is None else factor * scale


def _each(factor: Tensor | None, layers: int) -> Factors:
    return None if factor is None else (factor,) * layers
