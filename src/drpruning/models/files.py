"""The files of a model, in a folder or on the Hub: config.json, weights, and what they lead to.

Nothing is loaded and no code that comes with a model is run; see docs/security.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from drpruning.common.errors import BadInput
from drpruning.common.files import is_file, read_json_object
from drpruning.common.hub import HUB_NAME, local_file, split_revision

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
LARGEST_CONFIG = 10_000_000
"""Bytes of a config.json, at most; published ones have some thousands."""
_HUB_CODE = ("attn_implementation", "_attn_implementation", "experts_implementation")


def read_config(name: str, field: str, remedy: str = "give a folder") -> dict[str, Any]:
    """Read the config.json of a model.

    Args:
        name: A folder, or a name on the Hub.
        field: The field of the recipe that names the model, for the message.
        remedy: What to do where the Hub does not have it.

    Raises:
        BadInput: There is no config.json (where the files are of a known kind, the message says of
            which), or it cannot be read or does not hold a JSON object.
    """
    path = Path(name) / "config.json"
    if not is_file(path, field):
        refuse_other_formats(Path(name), field, has_config=False)
        check_hub_name(name, field, "no folder with a config.json")
        path = _hub_config(name, field, remedy)
    return read_json_object(path, field, LARGEST_CONFIG)


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest text that a model was made for; None where its config does not say."""
    found = config.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def check_hub_name(name: str, field: str, lacking: str) -> None:
    """Refuse the name of a model that is not on this machine and cannot be on the Hub either.

    Args:
        name: A name that is no usable folder.
        field: The field of the recipe that it is from.
        lacking: What it is not, for the message.

    Raises:
        BadInput: A file or folder has the name but is not what is needed, or no model on the Hub
            can have the name.
    """
    hub_name, revision = split_revision(name)
    if hub_name != name and Path(hub_name).exists():
        raise BadInput(
            f"{field}: {hub_name} is on this machine, where a model has no revisions; leave "
            f"@{revision} out, or give the model's name on the Hub"
        )
    if not HUB_NAME.fullmatch(hub_name) or Path(hub_name).exists():
        raise BadInput(f"{field}: {name or 'the empty name'} is {lacking}, nor a name on the Hub")


def check_files(name: str, field: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Refuse a model whose files lead to anything but its own plain safetensors weights.

    Transformers follows some of them to pickles, to other models or to code on the Hub.

    Args:
        name: A folder, or a name on the Hub.
        field: The field of the recipe that names the model, for the message.
        config: The content of its config.json, where that has been read.

    Returns:
        The content of its config.json.

    Raises:
        BadInput: The weights are quantized, elsewhere, or an adapter's; a field names code on the
            Hub; or a file cannot be read.
    """
    config = read_config(name, field) if config is None else config
    place = f"{field}: the config.json of {name} has"
    if config.get("quantization"):  # mlx-lm writes the same object as quantization_config too
        raise BadInput(
            f"{place} a quantization of MLX; give the model that it was made from, or convert it "
            "back with `mlx_lm.convert --dequantize`"
        )
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise BadInput(
            f"{place} a quantization_config ({method or 'no method named'}); give the model that "
            "it was made from, with its plain weights"
        )
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
    if optional_file(name, ADAPTER, field) is not None:
        raise _adapter(name, field)
    if (index := optional_file(name, INDEX, field)) is not None:
        _read_index(index, field)
    return config


def weight_files(folder: Path, field: str) -> list[Path]:
    """The files that Transformers takes the weights in a folder from.

    Args:
        folder: Of the model.
        field: The field of the recipe that names it.

    Raises:
        BadInput: There are none, or one that the index names is missing.
    """
    if is_file(folder / WEIGHTS, field):
        return [folder / WEIGHTS]
    if not is_file(folder / INDEX, field):
        refuse_other_formats(folder, field, has_config=True)
        raise BadInput(
            f"{field}: {folder} has no safetensors weights ({WEIGHTS} or {INDEX}); convert them "
            "first"
        )
    index = _read_index(folder / INDEX, field)
    if not index["weight_map"]:
        raise BadInput(f"{field}: {folder / INDEX} is not complete; fetch it again")
    if not isinstance(index.get("metadata"), dict):  # Transformers 4 and 5 write into it
        raise BadInput(
            f"{field}: {folder / INDEX} has no metadata, without which Transformers does not read "
            'it; add "metadata": {} to it'
        )
    files = [folder / part for part in sorted(set(index["weight_map"].values()))]
    if missing := [file for file in files if not file.is_file()]:
        raise BadInput(f"{field}: {missing[0]} is missing, and {INDEX} names it; fetch it again")
    return files


class _Format(NamedTuple):
    """A format of models that is not read.

    Attributes:
        files: Patterns of its files' names.
        kind: What they are.
        remedy: How to come to a model that is read.
        has_config: Whether a config.json belongs to it.
    """

    files: tuple[str, ...]
    kind: str
    remedy: str
    has_config: bool


_LOAD, _SAVE = "AutoModelForCausalLM.from_pretrained({folder!r}", ").save_pretrained(NEW_FOLDER)"
_FORMATS = (
    _Format(
        ("*.gguf",),
        "GGUF files of llama.cpp",
        "name the model that they were made from, as quantized weights cannot be pruned",
        has_config=False,
    ),
    _Format(
        ("consolidated*.pth", "consolidated*.pt", "consolidated*.safetensors"),
        "the own format of Meta or Mistral",
        "name the model's release in Transformers' format, or convert it with "
        "convert_llama_weights_to_hf.py or convert_mistral_weights_to_hf.py of Transformers' "
        "repository",
        has_config=False,
    ),
    _Format(
        ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pt", "*.pth", "*.ckpt"),
        "pickles of PyTorch, which can run code",
        f"if you trust them, convert them with Transformers' {_LOAD}{_SAVE} and copy the "
        "tokenizer's files",
        has_config=True,
    ),
    _Format(
        ("tf_model*.h5",),
        "weights of TensorFlow",
        f"convert them with Transformers 4: {_LOAD}, from_tf=True{_SAVE}, and copy the "
        "tokenizer's files",
        has_config=True,
    ),
    _Format(
        ("flax_model*.msgpack",),
        "weights of Flax",
        f"convert them with Transformers 4: {_LOAD}, from_flax=True{_SAVE}, and copy the "
        "tokenizer's files",
        has_config=True,
    ),
)
"""What people have in place of safetensors; the first that is found is named."""


def refuse_other_formats(place: Path, field: str, *, has_config: bool) -> None:
    """Refuse a file in place of a folder, and a folder with a model in another format.

    Args:
        place: What the field names; it may not exist.
        field: The field of the recipe that names it.
        has_config: Whether a config.json was found.

    Raises:
        BadInput: It is one of these; the message names the format and how to convert it.
    """
    if is_file(place, field) and place.suffix != ".gguf":
        raise BadInput(f"{field}: {place} is a file; give the folder that holds the model")
    if is_file(place / ADAPTER, field):
        raise _adapter(str(place), field)
    for known in _FORMATS:
        if known.has_config > has_config:
            continue
        names = [place.name] if is_file(place, field) else _names(place, known.files)
        if names:
            raise BadInput(
                f"{field}: {place} has no safetensors weights but {known.kind} ({names[0]}); "
                + known.remedy.format(folder=str(place))
            )


def _names(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    return sorted(file.name for pattern in patterns for file in folder.glob(pattern))


def _adapter(name: str, field: str) -> BadInput:
    return BadInput(
        f"{field}: {name} is an adapter ({ADAPTER}); merge it into its model first (in PEFT: "
        "load it, merge_and_unload(), save_pretrained()), and give the merged model"
    )


def _read_index(file: Path, field: str) -> dict[str, Any]:
    """Read an index of weights; it may name only safetensors files beside it."""
    index = read_json_object(file, field)
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


def optional_file(name: str, file: str, field: str) -> Path | None:
    """Find a file of a model, which is fetched where it is on the Hub.

    Args:
        name: A folder, or a name on the Hub with or without a revision.
        file: Name of the file.
        field: The field of the recipe that names the model, for the message.

    Returns:
        None where the model has none of that name, or it cannot be fetched.

    Raises:
        BadInput: A folder above it does not let us look.
    """
    if Path(name).is_dir():
        return local_file(name, file, field)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    hub_name, revision = split_revision(name)
    try:
        return Path(hf_hub_download(hub_name, file, revision=revision))
    except EntryNotFoundError:
        return None


def _hub_config(name: str, field: str, remedy: str) -> Path:
    """Fetch the config.json of a model on the Hub, or find it in the cache."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError
    except ImportError:
        raise BadInput(
            f"{field}: {name} is no folder on this machine, and looking it up on the Hub needs "
            "`pip install drpruning[train]`"
        ) from None
    hub_name, revision = split_revision(name)
    try:
        return Path(hf_hub_download(hub_name, "config.json", revision=revision))
    except RemoteEntryNotFoundError:
        raise BadInput(
            f"{field}: {name} on the Hub has no config.json, as GGUF files or an adapter alone "
            "have none; name the model that they were made from"
        ) from None
    except Exception as error:  # the Hub client has a dozen unrelated error types
        raise not_found(name, field, error, remedy) from None


def not_found(name: str, field: str, error: Exception, remedy: str) -> BadInput:
    """The error for a model that is no folder and that the Hub's client cannot fetch."""
    return BadInput(
        f"{field}: {name} is no folder on this machine and not to be had from the Hub "
        f"({first_line(error)}); {remedy}"
    )


def first_line(error: Exception) -> str:
    """The first line of what a library says of an error, or else the error's type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
