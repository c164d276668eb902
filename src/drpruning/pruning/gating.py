"""Masks folded into the weights they gate, so that their cost grows with parameters, not tokens.

A `Gate` is a `torch.nn.utils.parametrize` parametrization: the model's own code reads the gated
weight, the optimizer and FSDP see the plain one. Its factors are set from outside before a forward
pass and outlive it, so that a recomputed layer (gradient checkpointing) reads the same ones.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GatedWeight(torch.autograd.Function):
    """`weight * outer(row, column)`; either factor may be None.

    Shapes: weight [m, n], row [m], column [n]. The product is computed in the wider of the two
    types and returned in the weight's. Backward costs two elementwise products and two
    matrix-vector products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        row: Tensor | None,
        column: Tensor | None,
    ) -> Tensor:
        """The gated weight, [m, n]."""
        ctx.save_for_backward(weight, row, column)
        return _scale(weight, row, column)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients for weight, row and column."""
        weight, row, column = ctx.saved_tensors
        needs_weight, needs_row, needs_column = ctx.needs_input_grad
        d_weight = _scale(gradient, row, column) if needs_weight else None
        d_row = d_column = None
        if needs_row or needs_column:
            factor = row if row is not None else column
            product = gradient.to(factor.dtype) * weight
            with torch.autocast(product.device.type, enabled=False):
                if needs_row:
                    d_row = product.sum(1) if column is None else product @ column
                if needs_column:
                    d_column = product.sum(0) if row is None else row @ product
        return d_weight, d_row, d_column


def _scale(matrix: Tensor, row: Tensor | None, column: Tensor | None) -> Tensor:
    scaled = matrix if row is None else matrix * row[:, None]
    if column is not None:
        scaled = scaled * column if row is None else scaled.mul_(column)
    return scaled.to(matrix.dtype)


class Gate(nn.Module):
    """Multiplies a parameter by a factor along its first axis and one along its second.

    Attributes:
        row: [first dimension] or None for ones.
        column: [second dimension] or None for ones; unused where the parameter is a vector.
    """

    row: Tensor | None
    column: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.row = None
        self.column = None

    def forward(self, parameter: Tensor) -> Tensor:
        """The gated parameter, in its own type."""
        row, column = self.row, self.column
        if row is None and column is None:
            return parameter
        if row is not None and parameter.ndim == 1:
            return (parameter * row).to(parameter.dtype)
        gated: Tensor = GatedWeight.apply(parameter, row, column)  # type: ignore[no-untyped-call]
        return gated

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"row": None, "column": None}


class OutputGate:
    """A forward hook that multiplies a module's output along its last axis.

    Attributes:
        factor: [last dimension] or None for ones.
    """

    def __init__(self) -> None:
        self.factor: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG002
        """The gated output, in its own type."""
        if self.factor is None:
            return output
        return (output * self.factor).to(output.dtype)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        copy = type(self)()
        memo[id(self)] = copy
        return copy
