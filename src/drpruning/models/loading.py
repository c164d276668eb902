"""Loading of Transformers models, from safetensors only."""

import os
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError

from drpruning.common.errors import BadInput
from drpruning.common.hub import split_revision
from drpruning.models.files import check_files, first_line
from drpruning.models.inspect import shape_of, untied_output
from drpruning.models.kernels import use_kernels
from drpruning.recipe import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(
    source: str,
    field: str = "model.source",
    training: Training | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> "PreTrainedModel":
    """Load a causal language model, from safetensors only, without remote code.

    Args:
        source: A folder, or a name on the Hub, with or without a revision (`NAME@REVISION`).
        field: What named it, for the message.
        training: Names its kernels; absent: Transformers' own choice.
        dtype: Of the weights; `auto`: that of the model's files.

    Raises:
        BadInput: It cannot be loaded, its weights are not all there or not all finite, its output
            matrix differs from the embedding that it should be tied to, or it does not take the
            kernels.
    """
    from transformers import AutoModelForCausalLM

    shape = shape_of(check_files(source, field), f"{field}: {source}")
    name, revision = split_revision(source)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise BadInput(
            f"{field}: {source} cannot be loaded as a causal language model with safetensors "
            f"weights: {first_line(error)}"
        ) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[kind])):
            raise BadInput(
                f"{field}: the weights in {source} are not those of its config.json "
                f"({kind.replace('_', ' ')}: {', '.join(keys[:3])}); fetch it again"
            )
    if lost := [n for n, p in model.named_parameters() if not p.detach().isfinite().all()]:
        raise BadInput(
            f"{field}: the weights in {source} hold numbers that are not finite ({len(lost)} "
            f"tensors, the first: {lost[0]}); fetch it again, or take another model"
        )
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    # Transformers 5 ties the two where their numbers are equal, 4 always.
    if shape.tied_embeddings and output.weight is not embedding.weight:
        raise untied_output(source, shape, field)
    use_kernels(model, training)
    # Transformers sets it from pad_token_id, and torch then gives the row of that token no
    # gradient. Blocks have no padding, and the token is often EOS, which ends every document.
    embedding.padding_idx = None
    loaded: PreTrainedModel = model
    return loaded


def check_loadable(source: str, field: str) -> None:
    """Refuse a model that Transformers cannot build and run from its config.json.

    No weights are loaded: the model is built on the meta device, where a forward pass only works
    out shapes. That is enough for a window, a number of heads or a rate of dropout that would fail
    in the first step of training.

    Args:
        source: A folder, or a name on the Hub.
        field: What named it, for the message.

    Raises:
        BadInput: The model cannot be built, or its forward pass fails.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    name, revision = split_revision(source)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            model.train()(input_ids=torch.zeros(1, 4, dtype=torch.long))
    except Exception as error:  # whatever a value in it leads to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, NotImplementedError) or "meta tensor" in reason:
            # The meta device cannot do it (rotary scalings read positions). For the value of a
            # tensor torch raises a plain RuntimeError, which only its words tell apart.
            return
        raise BadInput(
            f"{field}: the config.json of {source} does not make a model: {reason}; correct it"
        ) from None


def quiet_libraries() -> None:
    """Turn off progress bars and advice of the libraries below; errors are still shown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")  # asks a service on the Hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
