"""A model's logits chunk by chunk, so that no tensor of [tokens, vocabulary] lives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def chunked_logits(model: nn.Module, **inputs: Any) -> Callable[[slice], Tensor]:
    """Run a causal language model up to its last hidden states, without gradient.

    What follows on them (output matrix, soft caps, scalings) is done by the model's own forward
    pass, in which a stand-in for its body returns a part of the hidden states. So it is exact for
    every model whose forward pass is its body and then a head, as those of Transformers are.

    Args:
        model: A Transformers model with a head, in evaluation mode; sharded by FSDP2 or not.
        inputs: For its forward pass.

    Returns:
        Rows of the flattened [batch * length] tokens -> their logits [n, V].
    """
    name = str(model.base_model_prefix)
    with torch.no_grad(), _in_place_of(model, name, _Recorder(model.get_submodule(name))) as body:
        model(**inputs)
    output = body.output
    hidden_ND = output.last_hidden_state.flatten(0, 1)

    def logits(rows: slice) -> Tensor:
        part = _Player(output, hidden_ND[None, rows])
        with torch.no_grad(), _in_place_of(model, name, part):
            found: Tensor = model(hidden_ND.new_zeros((1, 1), dtype=torch.long)).logits[0]
        return found

    return logits


@contextmanager
def _in_place_of(model: nn.Module, name: str, other: Any) -> Iterator[Any]:
    """Put another module in the place of a child while the block runs."""
    own = model._modules[name]
    model._modules[name] = other
    try:
        yield other
    finally:
        model._modules[name] = own


class _Recorder(nn.Module):
    """Runs a body, keeps its output, and hands one token of it on to the head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.body(*args, **kwargs)
        return type(self.output)(last_hidden_state=self.output.last_hidden_state[:1, :1])


class _Player(nn.Module):
    """Returns the given hidden states [1, n, D], whatever it is called with."""

    def __init__(self, output: Any, hidden_1nD: Tensor) -> None:
        super().__init__()
        self.output = type(output)(last_hidden_state=hidden_1nD)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output
