"""Whether a model folder has the names, shapes and fields that its readers expect.

Only config.json and the headers of the weight files are read, so that every result can be checked
as it is written: by the class that Transformers has for it, and by the rules of vLLM and llama.cpp.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from drpruning.common.errors import BadInput, TrainingError
from drpruning.common.files import read_json_object
from drpruning.data.tokenizer_files import TOKENIZER_FILE
from drpruning.models.files import LARGEST_CONFIG, weight_files
from drpruning.models.inspect import shape_of
from drpruning.models.tokenizer import check_tokenizer
from drpruning.models.weight_headers import StoredTensor, read_header
from drpruning.pruning import ModelShape

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROTARY_BASE = {"gpt_neox": "rotary_emb_base"}
"""Family -> its name for the rotary base, where that is not `rope_theta`."""
_FIELD = "model"


class LayoutError(TrainingError):
    """A model folder is not what its readers expect, so it was not kept."""


def check_layout(folder: Path) -> None:
    """Refuse a model folder that Transformers, vLLM or llama.cpp would not load, or load wrongly.

    Args:
        folder: Just written, by `drpruning.models.result.save_model`.

    Raises:
        LayoutError: Its weights are not those of the class that its config.json names, or its
            config.json lacks or contradicts what a reader takes from it.
    """
    try:
        config = read_json_object(folder / "config.json", _FIELD, LARGEST_CONFIG)
        shape = shape_of(config, _FIELD)
        files = weight_files(folder, _FIELD)
        stored = {t.name: t for file in files for t in read_header(file, _FIELD).tensors}
        if (folder / TOKENIZER_FILE).is_file():
            check_tokenizer(str(folder), shape, _FIELD)
    except BadInput as error:
        raise _refused(str(error)) from None
    problems = [*_weight_problems(folder, shape, stored), *_config_problems(config, shape, stored)]
    if problems:
        raise _refused(problems[0])


def _refused(reason: str) -> LayoutError:
    return LayoutError(
        f"the model is not written, because other programs could not read it: {reason}; this is a "
        "fault of drpruning, or of its match with the installed Transformers: report it"
    )


def _weight_problems(
    folder: Path, shape: ModelShape, stored: Mapping[str, StoredTensor]
) -> Iterator[str]:
    """In what the weights differ from the parameters of Transformers' own class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = shape.family
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):  # names and sizes, no memory
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a value in it leads to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        yield f"its config.json does not make a model: {reason}"
        return
    if (found := type(model).__name__) != family.architecture:
        yield f"its config.json makes a {found}, not a {family.architecture}"
    expected = {family.file_name(n): list(t.shape) for n, t in model.state_dict().items()}
    output = family.file_name(f"{family.output}.weight")
    shared = {output} if shape.tied_embeddings else set()
    if missing := expected.keys() - stored.keys() - shared:
        yield f"it has no weights for {min(missing)}"
    if unknown := stored.keys() - expected.keys():
        yield f"it has weights that the model lacks: {min(unknown)}"
    for name in sorted(expected.keys() & stored.keys()):
        if stored[name].shape != expected[name]:
            yield f"{name} has shape {stored[name].shape}, and the model {expected[name]}"


def _config_problems(
    config: Mapping[str, Any], shape: ModelShape, stored: Mapping[str, StoredTensor]
) -> Iterator[str]:
    """What vLLM and llama.cpp read from config.json and would not find, or find wrong."""
    if config.get("architectures") != [shape.family.architecture]:
        yield f"architectures is {config.get('architectures')}"  # both choose their code by it
    for name, size in shape.config_fields().items():
        if config.get(name) != size:
            yield f"{name} is {config.get(name)}, where the weights have {size}"
    for name in ("vocab_size", "max_position_embeddings"):
        if not isinstance(config.get(name), int):
            yield f"{name} is {config.get(name)}"
    types = {_DTYPES.get(tensor.dtype) for tensor in stored.values()}
    for name in ("dtype", "torch_dtype"):
        if types != {config.get(name)}:
            yield f"{name} is {config.get(name)}, and weights are {', '.join(map(str, types))}"
    layers = config.get("layer_types")
    if layers is not None and len(layers) != shape.num_layers:
        yield f"layer_types names {len(layers)} layers of {shape.num_layers}"
    yield from _rotary_problems(config, shape)


def _rotary_problems(config: Mapping[str, Any], shape: ModelShape) -> Iterator[str]:
    """Rotary settings that one reader takes from another place than the next, and finds others."""
    new = config.get("rope_parameters")
    if not isinstance(new, dict):
        yield f"rope_parameters is {new}"
        return
    base = _ROTARY_BASE.get(shape.model_type, "rope_theta")
    if config.get(base) != new.get("rope_theta"):
        yield f"{base} is {config.get(base)} beside {new.get('rope_theta')} in rope_parameters"
    kind = new.get("rope_type", "default")
    if kind != "default" and not config.get("rope_scaling"):
        yield f"rope_scaling is missing, where rope_parameters has the type {kind}"
