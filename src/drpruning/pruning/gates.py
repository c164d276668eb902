"""Masks folded into the weights they gate, so that their cost grows with parameters, not tokens.

The mask on what a linear module writes is a factor on the rows of its weight (and on its bias), the
mask on what it reads a factor on the columns; the mask after a norm is a factor on its weight. So
no activation is multiplied but the embedding's output (a batch reads few rows of its table), and
in a family without norms that read the stream what goes into the final norm.

A `Gate` is a `torch.nn.utils.parametrize` parametrization: the model's own code reads the gated
weight, the optimizer and FSDP see the plain one. Its factors are set from outside before a forward
pass and outlive it, so that a recomputed layer (gradient checkpointing) reads the same ones.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GatedWeight(torch.autograd.Function):
    """`P @ (weight * outer(row, column))`; row, column and the `unit` of P may each be None.

    Shapes: weight [m, n], row [m], column [n], unit [m]. P = I - outer(unit, unit) takes away the
    component along a unit vector, such as a mean; `unit` is a constant. The product is computed in
    the wider of the types and returned in the weight's.

    Written by hand because autograd would keep every intermediate product, each as large as the
    weight, until the backward pass. That costs two elementwise products and two matrix-vector
    products, with `unit` one of each more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        row: Tensor | None,
        column: Tensor | None,
        unit: Tensor | None,
    ) -> Tensor:
        """The gated weight, [m, n]."""
        ctx.save_for_backward(weight, row, column, unit)
        return _centre(_scale(weight, row, column), unit).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients for weight, row and column.

        With G = P @ gradient (P is symmetric): d_weight = G * outer(row, column), d_row =
        (G * weight) @ column, d_column = row @ (G * weight).
        """
        weight, row, column, unit = ctx.saved_tensors
        needs_weight, needs_row, needs_column, _ = ctx.needs_input_grad
        gradient = _centre(gradient, unit)
        d_weight = _scale(gradient, row, column).to(weight.dtype) if needs_weight else None
        d_row = d_column = None
        if needs_row or needs_column:
            factor = row if row is not None else column
            product = gradient.to(torch.promote_types(gradient.dtype, factor.dtype)) * weight
            wide = product.dtype
            with torch.autocast(product.device.type, enabled=False):
                if needs_row:
                    d_row = product.sum(1) if column is None else product @ column.to(wide)
                if needs_column:
                    d_column = product.sum(0) if row is None else row.to(wide) @ product
        return d_weight, d_row, d_column, None


def _scale(matrix: Tensor, row: Tensor | None, column: Tensor | None) -> Tensor:
    scaled = matrix if row is None else matrix * row[:, None]
    if column is not None:
        scaled = scaled * column if row is None else scaled.mul_(column)
    return scaled


def _centre(matrix: Tensor, unit: Tensor | None) -> Tensor:
    """P @ matrix, without writing P out."""
    if unit is None:
        return matrix
    with torch.autocast(matrix.device.type, enabled=False):
        wide = matrix.to(torch.promote_types(matrix.dtype, unit.dtype))
        unit = unit.to(wide.dtype)
        return torch.addr(wide, unit, unit @ wide, alpha=-1)


class Gate(nn.Module):
    """Multiplies a parameter by a factor along its first axis and one along its second.

    Attributes:
        row: [first dimension] or None for ones.
        column: [second dimension] or None for ones; unused where the parameter is a vector.
        unit: [first dimension] or None; see `GatedWeight`.
        offset: what the module adds to the parameter before it uses it.
    """

    row: Tensor | None
    column: Tensor | None
    unit: Tensor | None

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.row = self.column = self.unit = None
        self.offset = offset

    def forward(self, parameter: Tensor) -> Tensor:
        """The gated parameter, in its own type.

        A module that uses `parameter + offset` (Gemma's norms) must get `row * (parameter +
        offset)` in effect, so it is given `row * (parameter + offset) - offset`.
        """
        row, column, unit = self.row, self.column, self.unit
        if row is None and column is None:
            return parameter
        if parameter.ndim == 2:
            gated: Tensor = GatedWeight.apply(parameter, row, column, unit)  # type: ignore[no-untyped-call]
            return gated
        assert row is not None  # noqa: S101 - a vector has no columns
        product = parameter * row
        if self.offset:
            product = product + (row * self.offset - self.offset)
        if unit is not None:
            product = product - unit * (unit * product).sum()
        return product.to(parameter.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"row": None, "column": None, "unit": None}


class ActivationGate:
    """A hook that multiplies a module's output, or what goes into it, along the last axis.

    Attributes:
        factor: [last dimension], a scalar, or None for ones.
        unit: [last dimension] or None; its direction is taken out of the product.
    """

    def __init__(self) -> None:
        self.factor: Tensor | None = None
        self.unit: Tensor | None = None

    def _apply(self, activation: Tensor) -> Tensor:
        if self.factor is None:
            return activation
        product = activation * self.factor
        if self.unit is not None:
            product = product - (product * self.unit).sum(-1, keepdim=True) * self.unit
        return product.to(activation.dtype)

    def on_output(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG002
        """Forward hook: the gated output, in its own type."""
        return self._apply(output)

    def on_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG002
        """Forward pre-hook: the gated first input, in its own type."""
        return (self._apply(inputs[0]), *inputs[1:])

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        copy = type(self)()
        memo[id(self)] = copy
        return copy
