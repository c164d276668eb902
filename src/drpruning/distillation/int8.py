"""Linear layers whose weights are held in int8, for models that are only called."""

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per output row, for inference alone.

    Attributes:
        weight: int8 [out, in].
        scale: [out, 1], in the type of the layer it was made of: the row's largest weight / 127.
        bias: [out], or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        """Round the weights of a layer to the nearest of 255 values a row."""
        super().__init__()
        weight = layer.weight.detach()
        largest = weight.float().abs().amax(dim=1, keepdim=True)
        # The scale as it is kept: that of bfloat16 is off by up to 0.2%, as would be the row.
        scale = (largest / 127).to(weight.dtype)
        steps = weight.float() / scale.float().clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", steps.round_().to(torch.int8))
        self.register_buffer("scale", scale)
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of a linear layer
        """The product with the weights, which are float only meanwhile."""
        weight = self.weight.to(self.scale.dtype) * self.scale
        return nn.functional.linear(input, weight, self.bias)


def quantise_linear_layers(model: nn.Module) -> None:
    """Replace every linear layer of a model by an `Int8Linear`, in place.

    The embedding stays, and with it an output matrix that is tied to it.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and id(child.weight) not in embeddings:
                setattr(parent, name, Int8Linear(child))
