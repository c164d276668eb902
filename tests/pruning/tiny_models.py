"""Tiny random models for the pruning tests, of every family."""

import torch
import transformers
from transformers import PreTrainedModel

from drpruning.pruning import FAMILIES, MaskedModel, ModelShape, attach_masks

SLIDING = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
PECULIAR = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
        },
    },
    "mistral": {"sliding_window": 5, "head_dim": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {
        "attention_bias": True, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4,
        "layer_types": SLIDING,
    },
    "gemma2": {
        "head_dim": 8, "query_pre_attn_scalar": 7, "sliding_window": 4, "attention_bias": True,
        "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0,
    },
    "olmo2": {"attention_bias": True},
    "phi3": {
        "resid_pdrop": 0.0,
        "sliding_window": 5,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75
        },
    },
    "gpt_neox": {"attention_bias": True, "use_parallel_residual": True},
}  # fmt: skip
"""What a family can have beyond the plain decoder: all of it is on in the tests' models."""


def tiny(
    family: str = "llama",
    *,
    kv_heads: int = 4,
    tied: bool = False,
    plain: bool = False,
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
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "layer_norm_eps": eps,
        "initializer_range": 0.25,
        "pad_token_id": None,
        "eos_token_id": None,
    }
    sizes |= {} if plain else PECULIAR.get(family, {})
    if family == "gpt_neox":
        del sizes["num_key_value_heads"]
    architecture = getattr(transformers, FAMILIES[family].architecture)
    torch.manual_seed(seed)
    model = architecture(architecture.config_class(**(sizes | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


VARIANTS = {
    f"{family}{'-grouped' if kv_heads < 4 else ''}{'-tied' if tied else ''}": {
        "family": family, "kv_heads": kv_heads, "tied": tied,
    }
    for family in FAMILIES
    for kv_heads in ((4,) if family == "gpt_neox" else (4, 2))
    for tied in (False, True)
} | {
    "llama-plain": {"family": "llama", "plain": True},
    "gpt_neox-sequential": {
        "family": "gpt_neox", "use_parallel_residual": False, "attention_bias": False,
    },
}  # fmt: skip
"""Every family, multi-head and grouped, with its own and with tied embeddings."""

TARGETS = {
    "all": {"num_layers": 2, "hidden_size": 16, "intermediate_size": 9, "num_heads": 2},
    "layers": {"num_layers": 3},
    "hidden": {"hidden_size": 16},
    "heads": {"num_heads": 2},
    "intermediate": {"intermediate_size": 7},
}
GROUPED_TARGETS = {
    "groups": {"num_heads": 2, "num_kv_heads": 1},
    "heads in groups": {"num_heads": 2, "num_kv_heads": 2},
    "both": {"num_heads": 1, "num_kv_heads": 1, "hidden_size": 24, "num_layers": 3},
}


TOKENS = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))


def targets_of(variant: dict[str, object]) -> dict[str, dict[str, int]]:
    """Targets that a variant can reach, by name."""
    targets = dict(TARGETS)
    if variant["family"] == "gpt_neox":
        targets["hidden"] = targets["heads"] = {"hidden_size": 16, "num_heads": 2}
    if variant.get("kv_heads", 4) == 2:
        targets["all"] = {**targets["all"], "num_kv_heads": 1}
        targets |= GROUPED_TARGETS
        del targets["heads"]
    if variant["family"] == "gemma2":  # its layers go in pairs
        targets = {
            name: {**target, "num_layers": 2} if "num_layers" in target else target
            for name, target in targets.items()
        }
    return targets


CASES = {
    f"{variant}-{target}": (VARIANTS[variant], size)
    for variant in VARIANTS
    for target, size in targets_of(VARIANTS[variant]).items()
}
"""Every variant towards each of its targets."""


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
