"""Logits in chunks, and linear layers in int8."""

import pytest
import torch
from tiny_models import tiny
from torch import nn

from drpruning.distillation import Int8Linear, chunked_logits, quantise_linear_layers
from drpruning.pruning import FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_chunks_are_the_logits_of_the_model(family: str) -> None:
    model = tiny(family).eval()
    ids = torch.randint(61, (2, 12))
    with torch.no_grad():
        expected = model(input_ids=ids).logits.flatten(0, 1)
    logits = chunked_logits(model, input_ids=ids, use_cache=False)
    found = torch.cat([logits(slice(first, first + 5)) for first in range(0, 24, 5)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad
    with torch.no_grad():  # the model is as it was
        torch.testing.assert_close(model(input_ids=ids).logits.flatten(0, 1), expected)


def test_int8_is_off_by_half_a_step_of_its_row_at_most() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight[3] = 0
        layer.weight[4] *= 1e4
    small = Int8Linear(layer)
    identity = torch.eye(40)
    found = (small(identity) - layer.bias).T
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((found - layer.weight).abs() <= 0.501 * step + 1e-6).all()


def test_int8_has_rows_of_the_right_size_in_bfloat16_too() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2000, 20, bias=False, dtype=torch.bfloat16)
    small = Int8Linear(layer)
    found, weight = small.weight.float() * small.scale.float(), layer.weight.float()
    size = (found * weight).sum(1) / weight.square().sum(1)
    torch.testing.assert_close(size, torch.ones(20), atol=5e-4, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_int8_is_nearly_the_model(tied: bool) -> None:
    model = tiny("llama", tied=tied).eval()
    ids = torch.randint(61, (2, 12))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        before = sum(p.numel() * p.element_size() for p in model.parameters())
        quantise_linear_layers(model)
        found = model(input_ids=ids).logits
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert error < 0.05
    held = [*model.parameters(), *model.buffers()]
    assert sum(t.numel() * t.element_size() for t in held) < 0.6 * before
    kept = isinstance(model.get_output_embeddings(), nn.Linear)
    assert kept == tied
