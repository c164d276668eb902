"""The small files of a model, in a folder or on the Hub: what they say, and what they lead to.

Nothing is loaded and no code that comes with a model is run; see docs/security.md.
"""

import re
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?", re.ASCII)
_HUB_CODE = ("attn_implementation", "_attn_implementation", "experts_implementation")


def read_config(name: str, field: str, remedy: str = "give a folder") -> dict[str, Any]:
    """The config.json of a model.

    Args:
        name: A folder, or a name on the Hub.
        field: The field of the recipe that names the model, for the message.
        remedy: What to do where the Hub does not have it.

    Raises:
        BadInput: There is none, or it holds no JSON object.
    """
    path = Path(name) / "config.json"
    if not path.is_file():
        check_hub_name(name, field, "no folder with a config.json")
        path = _hub_config(name, field, remedy)
    return read_object(path, field)


def check_hub_name(name: str, field: str, lacking: str) -> None:
    """Refuse what is here but not what it should be, and what can be no name on the Hub.

    Args:
        name: A name that is no usable folder.
        field: The field of the recipe that it is from.
        lacking: What it is not, for the message.

    Raises:
        BadInput: So.
    """
    if not _HUB_NAME.fullmatch(name) or Path(name).exists():
        raise BadInput(f"{field}: {name or 'the empty name'} is {lacking}, nor a name on the Hub")


def check_files(name: str, field: str) -> None:
    """Refuse a model whose files lead to anything but its own plain safetensors weights.

    Transformers follows some of them to pickles, to other models or to code on the Hub.

    Args:
        name: A folder, or a name on the Hub.
        field: The field of the recipe that names the model, for the message.

    Raises:
        BadInput: So, or the config.json cannot be read.
    """
    config = read_config(name, field)
    place = f"{field}: the config.json of {name} has"
    if config.get("quantization_config"):
        raise BadInput(f"{place} a quantization_config; give the model with its plain weights")
    if config.get("transformers_weights"):
        raise BadInput(
            f"{place} transformers_weights ({config['transformers_weights']!r}), which points to "
            "other weights; take it out"
        )
    for key in _HUB_CODE:
        if "/" in str(config.get(key)):
            raise BadInput(
                f"{place} {key} {config[key]!r}, which is code on the Hub; take it out and choose "
                "a kernel with training.attention"
            )
    if _optional(name, ADAPTER) is not None:
        raise BadInput(f"{field}: {name} is an adapter ({ADAPTER}); merge it into its model first")
    if (index := _optional(name, INDEX)) is not None:
        _check_index(index, field)


def weight_files(folder: Path, field: str) -> list[Path]:
    """The files that Transformers takes the weights in a folder from.

    Args:
        folder: Of the model.
        field: The field of the recipe that names it.

    Raises:
        BadInput: There are none, or one that the index names is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise BadInput(
            f"{field}: {folder} has no safetensors weights ({WEIGHTS} or {INDEX}); convert them "
            "first"
        )
    index = _check_index(folder / INDEX, field)
    if not index["weight_map"] or not isinstance(index.get("metadata"), dict):
        raise BadInput(f"{field}: {folder / INDEX} is not whole; fetch it again")
    files = [folder / part for part in sorted(set(index["weight_map"].values()))]
    if missing := [file for file in files if not file.is_file()]:
        raise BadInput(f"{field}: {missing[0]} is not there, and {INDEX} names it; fetch it again")
    return files


def _check_index(file: Path, field: str) -> dict[str, Any]:
    """An index of weights that names safetensors files beside it only."""
    index = read_object(file, field)
    weights = index.get("weight_map")
    if not isinstance(weights, dict):
        raise BadInput(f"{field}: {file} has no weight_map; fetch it again")
    for part in weights.values():
        plain = isinstance(part, str) and Path(part).name == part and part.endswith(".safetensors")
        if not plain:
            raise BadInput(
                f"{field}: {file} names {part!r}, which is no safetensors file beside it; convert "
                "the weights first"
            )
    return index


def read_object(path: Path, field: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        field: The field of the recipe that it belongs to, for the message.

    Raises:
        BadInput: It holds none.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise BadInput(f"{field}: {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{field}: {path} does not hold a JSON object")
    return content


def _optional(name: str, file: str) -> Path | None:
    """A file of a model; None where the model has none of that name, or it cannot be had."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None


def _hub_config(name: str, field: str, remedy: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise BadInput(
            f"{field}: {name} is no folder here, and looking it up on the Hub needs "
            "`pip install drpruning[train]`"
        ) from None
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # the Hub client has a dozen unrelated error types
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{field}: {name} is no folder here and not to be had from the Hub ({reason}); {remedy}"
        ) from None
