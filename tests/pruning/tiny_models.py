"""Tiny random models for the pruning tests."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from drpruning.pruning import MaskedModel, ModelShape, attach_masks


def tiny(
    family: str = "llama",
    *,
    kv_heads: int = 4,
    tied: bool = False,
    biases: bool = False,
    eps: float = 0.1,
    seed: int = 0,
    **config: object,
) -> PreTrainedModel:
    """A random model with logits of order one.

    A large epsilon in the norms shows what would hide in rounding; biases and norm weights are
    random because their usual zeros and ones would hide faults too.
    """
    sizes = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "initializer_range": 0.25,
    } | config
    torch.manual_seed(seed)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=biases, mlp_bias=biases))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


VARIANTS = {
    "llama-mha": {"family": "llama"},
    "llama-gqa-biases": {"family": "llama", "kv_heads": 2, "biases": True},
    "llama-tied": {"family": "llama", "tied": True},
    "qwen2-gqa": {"family": "qwen2", "kv_heads": 2},
    "qwen2-mha-tied": {"family": "qwen2", "tied": True},
    "qwen2-gqa-tied": {"family": "qwen2", "kv_heads": 2, "tied": True},
}

TARGETS = {
    "all": {"num_layers": 2, "hidden_size": 12, "intermediate_size": 9, "num_heads": 2},
    "width": {"hidden_size": 16, "intermediate_size": 9, "num_heads": 2},
    "layers": {"num_layers": 3},
    "hidden": {"hidden_size": 12},
    "heads": {"num_heads": 2},
    "intermediate": {"intermediate_size": 7},
}


TOKENS = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(3))


def masked(
    model: PreTrainedModel, *, random_masks: bool = True, seed: int = 0, **target: int
) -> MaskedModel:
    """Masks towards a target, spread out at random so that cuts come from the middle."""
    result = attach_masks(model, ModelShape.of(model).pruned_to(**target), seed=seed)
    if random_masks:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for log_alpha in result.masks.log_alpha.values():
                log_alpha.copy_(
                    torch.randn(log_alpha.shape, generator=generator).mul(2).clamp(-4, 4)
                )
    return result
