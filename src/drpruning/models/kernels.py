"""The kernels that compute a model: of its attention, and Liger's fused ones."""

import importlib
import os
from typing import TYPE_CHECKING

import torch

from drpruning.common.errors import BadInput
from drpruning.models.files import first_line
from drpruning.models.memory import EAGER_BY_DEFAULT
from drpruning.recipe import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def use_kernels(model: "PreTrainedModel", training: Training | None) -> None:
    """Give a model without masks the kernels that a recipe names, in place.

    Call it before masks are attached. Liger also replaces modules of the model's family for the
    rest of the process, so models that are made later have its kernels too.

    Args:
        model: As Transformers has loaded it.
        training: Names the kernels; None: the family's defaults.

    Raises:
        BadInput: A package or a GPU is missing, or the family does not support a kernel.
    """
    if training is not None and training.attention is not None:
        _use_attention(model, training.attention)
    elif model.config.model_type in EAGER_BY_DEFAULT:
        use_default_attention(model)
    if training is not None and training.liger:
        _use_liger(model)


def use_default_attention(model: "PreTrainedModel") -> None:
    """Give a model the attention of its family's default; unlike others it takes float32 too."""
    # Transformers 5.17 would choose sdpa for Gemma 2 too, which leaves out its soft caps.
    eager = model.config.model_type in EAGER_BY_DEFAULT
    model.set_attn_implementation("eager" if eager else None)


def _use_attention(model: "PreTrainedModel", name: str) -> None:
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    # Without the package Transformers may fetch a kernel from the Hub, code that nobody named.
    packages = {
        "flash_attention_2": ("flash-attn", is_flash_attn_2_available),
        "flash_attention_3": ("flash-attn-3", is_flash_attn_3_available),
    }
    if name in packages and not packages[name][1]():
        raise BadInput(
            f"training.attention: {name} needs a GPU and the package {packages[name][0]}; "
            "install it, or write sdpa"
        )
    family = model.config.model_type
    if family in EAGER_BY_DEFAULT and name == "sdpa":
        raise BadInput(
            f"training.attention: sdpa does not work for {family}, leave it out: it lacks soft caps"
        )
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"training.attention: {name} does not work for {family}, leave it out: "
            f"{first_line(error)}"
        ) from None
    if model.config._attn_implementation != name:
        raise BadInput(f"training.attention: {family} has no {name}; leave it out")


def _use_liger(model: "PreTrainedModel") -> None:
    try:
        liger = importlib.import_module("liger_kernel.transformers.monkey_patch")
    except ImportError:
        raise BadInput(
            "training.liger: needs the package liger-kernel; install it, or write liger: false"
        ) from None
    family = model.config.model_type
    if family not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise BadInput(f"training.liger: Liger has no kernels for {family}; write liger: false")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise BadInput("training.liger: Liger's kernels need a GPU; write liger: false")
    liger._apply_liger_kernel_to_instance(model=model)
