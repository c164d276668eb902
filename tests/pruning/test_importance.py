"""The importance of parts before masks are trained, and masks that start from it."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from drpruning.common.errors import BadInput
from drpruning.pruning import (
    MaskedModel,
    ModelShape,
    attach_masks,
    initialise_masks,
    taylor_importance,
)
from drpruning.pruning.hard_concrete import LARGEST_LOG_ALPHA

TOKENS = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(3))
TARGET = {
    "num_layers": 2,
    "hidden_size": 12,
    "intermediate_size": 9,
    "num_heads": 2,
    "num_kv_heads": 2,
}


def tiny(*, kv_heads: int = 4, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        initializer_range=0.25,
    )
    return LlamaForCausalLM(config).eval()


def masked(model: PreTrainedModel, **target: int) -> MaskedModel:
    return attach_masks(model, ModelShape.of(model).pruned_to(**(target or TARGET)))


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": row[None], "labels": row[None]} for row in TOKENS]


@torch.no_grad()
def scale_part(model: PreTrainedModel, name: str, index: tuple[int, ...], factor: float) -> None:
    """Do to a plain multi-head model what a mask of this value does."""
    layers = model.model.layers
    layer, unit = layers[index[0] if name != "hidden" else 0], index[-1]
    if name == "layer":
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    elif name == "intermediate":
        layer.mlp.down_proj.weight[:, unit].mul_(factor)
    elif name == "head":
        layer.self_attn.o_proj.weight[:, 6 * unit : 6 * unit + 6].mul_(factor)
    else:
        model.model.embed_tokens.weight[:, unit].mul_(factor)
        model.model.norm.weight[unit].mul_(factor)
        for layer in layers:
            layer.input_layernorm.weight[unit].mul_(factor)
            layer.post_attention_layernorm.weight[unit].mul_(factor)
            layer.self_attn.o_proj.weight[unit].mul_(factor)
            layer.mlp.down_proj.weight[unit].mul_(factor)


@pytest.mark.parametrize("name", ["layer", "hidden", "head", "intermediate"])
def test_scores_are_squared_derivatives_of_the_loss_in_the_masks(name: str) -> None:
    score = taylor_importance(masked(tiny()), batches()[:1])[name]
    index = tuple(map(int, torch.unravel_index(score.argmax(), score.shape)))
    losses = []
    for factor in (1.02, 0.98):
        model = tiny()
        scale_part(model, name, index, factor)
        losses.append(model(**batches()[0]).loss.item())
    slope = (losses[0] - losses[1]) / 0.04
    assert score[index].item() == pytest.approx(slope**2, rel=0.01)


@pytest.mark.parametrize(
    ("variant", "heads"),
    [
        ({}, {"num_heads": 2}),
        ({"tied": True}, {"num_heads": 2}),
        ({"kv_heads": 2}, {"num_heads": 2, "num_kv_heads": 1}),
        ({"kv_heads": 2}, {"num_heads": 2, "num_kv_heads": 2}),
        ({"kv_heads": 2}, {"num_heads": 1, "num_kv_heads": 1}),
    ],
    ids=str,
)
def test_every_part_with_a_mask_has_a_score(variant: dict[str, int], heads: dict[str, int]) -> None:
    model = masked(tiny(**variant), num_layers=2, hidden_size=12, **heads)
    scores = taylor_importance(model, batches())
    assert set(scores) == set(model.masks.granularities)
    for name, score in scores.items():
        assert score.shape == model.masks.log_alpha[name].shape
        assert (score > 0).all()


def test_scores_add_up_over_batches_and_leave_the_model_alone() -> None:
    model = masked(tiny())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = taylor_importance(model, batches())
    parts = [taylor_importance(model, [batch]) for batch in batches()]
    for name, score in whole.items():
        torch.testing.assert_close(score, parts[0][name] + parts[1][name])
        assert not score.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_part_that_does_nothing_has_no_importance() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 3] = 0
        model.model.layers[2].self_attn.o_proj.weight.zero_()
    scores = taylor_importance(masked(model), batches())
    assert scores["intermediate"][1, 3] == 0
    assert scores["head"][2].abs().max() == 0
    assert (scores["intermediate"] == 0).sum() == 1
    assert (scores["hidden"] > 0).all()


def test_gradient_checkpointing_gives_the_same_scores() -> None:
    plain = taylor_importance(masked(tiny()), batches())
    model = masked(tiny()).train()
    enable = getattr(model.model, "activation_checkpointing_enable", None)
    (enable or model.model.gradient_checkpointing_enable)({"use_reentrant": False})
    inputs = [batch | {"use_cache": False} for batch in batches()]
    for name, score in taylor_importance(model, inputs).items():
        torch.testing.assert_close(score, plain[name])


def test_masks_start_in_the_order_of_their_scores_and_near_one() -> None:
    model = masked(tiny())
    generator = torch.Generator().manual_seed(5)
    scores = {
        name: torch.rand(log_alpha.shape, generator=generator)
        for name, log_alpha in model.masks.log_alpha.items()
    }
    initialise_masks(model, scores, spread=1.5)
    for name, log_alpha in model.masks.log_alpha.items():
        assert torch.equal(log_alpha.argsort(-1), scores[name].argsort(-1))
        torch.testing.assert_close(
            log_alpha.amax(-1), torch.full_like(log_alpha.amax(-1), LARGEST_LOG_ALPHA)
        )
        torch.testing.assert_close(log_alpha.amax(-1) - log_alpha.amin(-1),
                                   torch.full_like(log_alpha.amax(-1), 1.5))  # fmt: skip
    kept = model.masks.kept("target")
    for name, keep in kept.items():
        highest = scores[name].masked_fill(~keep, -1).sort(-1, descending=True).values
        rejected = scores[name].masked_fill(keep, -1).amax(-1)
        smallest_kept = highest.masked_fill(highest < 0, 2).amin(-1)
        assert (smallest_kept > rejected).all()
    assert all(share < 0.02 for share in model.sparsity().values())


def test_equal_scores_keep_the_first_and_more_scores_change_nothing_but_order() -> None:
    model = masked(tiny())
    same = {name: torch.zeros_like(a) for name, a in model.masks.log_alpha.items()}
    initialise_masks(model, same)
    kept = model.masks.kept("target")
    assert torch.equal(kept["hidden"], torch.arange(24) < 12)
    once = {name: a.detach().clone() for name, a in model.masks.log_alpha.items()}
    initialise_masks(model, {name: a.exp() for name, a in once.items()})
    for name, log_alpha in model.masks.log_alpha.items():
        torch.testing.assert_close(log_alpha.detach(), once[name])


def test_scores_of_another_shape_are_refused() -> None:
    model = masked(tiny(), hidden_size=12)
    scores = {name: torch.zeros_like(a) for name, a in model.masks.log_alpha.items()}
    with pytest.raises(BadInput, match="shapes"):
        initialise_masks(model, scores | {"layer": torch.zeros(4)})
    with pytest.raises(BadInput, match="shapes"):
        initialise_masks(model, scores | {"hidden": torch.zeros(5)})


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="importance"):
        taylor_importance(masked(model), batches())
