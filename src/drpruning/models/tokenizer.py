"""Whether a tokenizer fits a model and can be loaded here, from its files alone."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.hub import local_file
from drpruning.data.tokenizer_files import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    read_local,
    read_settings,
    token_ids,
    token_text,
)
from drpruning.models.files import check_hub_name
from drpruning.pruning import ModelShape

UNUSED_ROWS, UNUSED_SHARE = 1024, 0.05
"""Rows of the embedding that may be without a token, the larger of the two. Vocabularies are padded
to multiples of 64 to 256, or more for many devices: of the published ones Phi-3 leaves 64 rows of
32,064 unused, GPT-NeoX 155 of 50,432, Qwen2 418 of 152,064, Phi-2 905 of 51,200 and, as the largest
share, DeepSeek LLM 2,385 of 102,400."""
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_ADDED, _MODEL = "added_tokens.json", "tokenizer.model"
_WELL_CONVERTED = {"llama": "LlamaTokenizer", "gemma2": "GemmaTokenizer"}
"""Classes of tokenizers, without "Fast", whose tokenizer.model Transformers 5 converts as 4 did. Of
another class or family (5.17 to 5.23, tried with Mistral and Phi-3) it takes the pieces alone, and
not that they begin with a space."""
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
"""The first line of a tokenizer.model that is tiktoken's and not sentencepiece's."""


def vocabulary(name: str, field: str) -> dict[str, int] | None:
    """Read token -> id from tokenizer.json or vocab.json; None where the model has neither here.

    Args:
        name: A folder, or a name on the Hub, whose cache is looked into.
        field: The field of the recipe that names it.

    Raises:
        BadInput: The name is neither a folder with a tokenizer nor a name on the Hub, or a file
            cannot be read or is not one of a tokenizer.
    """
    folder = Path(name)
    if not name or not folder.is_dir():
        check_hub_name(name, field, "no folder with a tokenizer")
    for file, tokens_in in ((TOKENIZER_FILE, token_ids), ("vocab.json", dict[str, int])):
        if (content := read_local(name, file, field)) is None:
            continue
        try:
            tokens = tokens_in(content)
        except (ValueError, KeyError, TypeError, AttributeError):
            tokens = {}
        if not tokens or not all(type(index) is int and index >= 0 for index in tokens.values()):
            place = local_file(name, file, field)
            raise BadInput(f"{field}: {place} is not a tokenizer file; fetch it again")
        return tokens
    if not folder.is_dir() or any(folder.glob("*token*")) or any(folder.glob("*.model")):
        return None
    raise BadInput(f"{field}: {folder} has no tokenizer ({TOKENIZER_FILE})")


def check_tokenizer(name: str, shape: ModelShape, field: str) -> None:
    """Refuse a tokenizer that is missing, cannot be loaded here, or has ids that the model lacks.

    Args:
        name: Of the model.
        shape: Its shape.
        field: The field of the recipe that names it.

    Raises:
        BadInput: There is no tokenizer, it cannot be read, it needs packages that are not
            installed, or its ids exceed the vocabulary.
    """
    tokens = vocabulary(name, field)
    if tokens is None:
        _check_packages(name, field)
    elif (largest := max(tokens.values())) >= shape.vocab_size:
        raise BadInput(
            f"{field}: the tokenizer in {name} does not fit the model: its largest id is "
            f"{largest}, the model's vocabulary has {shape.vocab_size} entries"
        )
    for token, (index, file) in _added(name, tokens or {}, field).items():
        if index is not None and index >= shape.vocab_size:
            raise BadInput(
                f"{field}: the tokenizer in {name} does not fit the model: {file} adds {token!r} "
                f"with the id {index}, the model's vocabulary has {shape.vocab_size} entries; take "
                "it out, or give the tokenizer that belongs to the model"
            )


def _check_packages(name: str, field: str) -> None:
    """Refuse a tokenizer.model alone where the packages that convert it are not installed.

    Transformers 5 asks for tiktoken then, whatever the file is.
    """
    file = local_file(name, _MODEL, field)
    if file is None or find_spec("transformers") is None:  # planned here, to be run elsewhere
        return
    with file.open("rb") as stream:
        is_tiktoken = _TIKTOKEN.match(stream.read(4096))
    packages = ("tiktoken",) if is_tiktoken else ("sentencepiece", "google.protobuf")
    if missing := [package for package in packages if not _is_installed(package)]:
        names = " ".join(package.removeprefix("google.") for package in missing)
        raise BadInput(
            f"{field}: {name} has its tokenizer as {_MODEL} alone, which Transformers reads with "
            f"packages that are not installed: `pip install {names}`, or put the model's "
            "tokenizer.json beside it"
        )


def _is_installed(package: str) -> bool:
    with suppress(ModuleNotFoundError):  # of the package above it
        return find_spec(package) is not None
    return False


def _added(name: str, tokens: Mapping[str, int], field: str) -> dict[str, tuple[int | None, str]]:
    """Find what other files add to a vocabulary: token -> its id and the file.

    Transformers appends such a token after the last one, whatever id its file gives it; the larger
    of the two ids counts. Where the vocabulary is not known, a token without an id has none.
    """
    found: dict[str, tuple[int | None, str]] = {}
    following = max(tokens.values()) + 1 if tokens else None
    for token, index, file in _declared(name, field):
        if token in tokens or token in found:
            continue
        known = [number for number in (index, following) if number is not None]
        found[token] = (max(known) if known else None, file)
        following = None if following is None else following + 1
    return found


def _declared(name: str, field: str) -> Iterator[tuple[str, int | None, str]]:
    """Tokens that files beside the vocabulary name: token, id if it has one, file."""
    for token, index in (read_local(name, _ADDED, field) or {}).items():
        yield token, index if isinstance(index, int) else None, _ADDED
    config = read_local(name, TOKENIZER_CONFIG, field) or {}
    decoder = config.get("added_tokens_decoder")
    for index, entry in decoder.items() if isinstance(decoder, dict) else ():
        if (text := token_text(entry)) is not None:
            yield text, int(index) if index.isdecimal() else None, TOKENIZER_CONFIG
    for role, token in special_tokens(name, field).items():
        in_config = token_text(config.get(role)) == token
        yield token, None, TOKENIZER_CONFIG if in_config else SPECIAL_TOKENS_MAP


def special_tokens(name: str, field: str) -> dict[str, str]:
    """Read `bos_token`, `eos_token`, `unk_token`, `pad_token` -> token, of those that are set.

    Args:
        name: A folder, or a name on the Hub, whose cache is looked into.
        field: The field of the recipe that names it.

    Raises:
        BadInput: A file cannot be read, or holds no JSON object.
    """
    settings = read_settings(name, field)
    found = {role: token_text(settings.get(role)) for role in _ROLES}
    return {role: token for role, token in found.items() if token is not None}


def tokenizer_warnings(
    name: str, source: str, shape: ModelShape, config: Mapping[str, Any], field: str
) -> list[str]:
    """Warn of a tokenizer that is probably another model's, though all its ids fit.

    Args:
        name: Of the model whose tokenizer it is.
        source: The model that is trained with it.
        shape: The source's shape.
        config: The content of its config.json.
        field: The field of the recipe that names the tokenizer.

    Raises:
        BadInput: A file cannot be read.
    """
    tokens = vocabulary(name, field)
    if tokens is None:
        return _conversion_warning(name, shape, field)
    lines = []
    if name != source and local_file(source, TOKENIZER_FILE, field) is not None:
        own = vocabulary(source, field) or {}
        if other := sum(tokens.get(token) != index for token, index in own.items()):
            lines.append(
                f"{field}: {name} has no token or another id for {other:,} of the {len(own):,} "
                f"tokens of {source}, which was trained with its own tokenizer; leave it out, "
                "unless the model's embedding was made for this one"
            )
    unused = shape.vocab_size - len(set(tokens.values()))
    if unused > max(UNUSED_ROWS, UNUSED_SHARE * shape.vocab_size):
        lines.append(
            f"{field}: the tokenizer in {name} has {len(tokens):,} tokens and the model's "
            f"vocabulary {shape.vocab_size:,} entries; it is probably another model's: give the "
            "one that the model was trained with"
        )
    return lines + _special_token_warning(name, source, tokens, config, field)


def _conversion_warning(name: str, shape: ModelShape, field: str) -> list[str]:
    if local_file(name, _MODEL, field) is None:
        return []
    tokenizer_class = str((read_local(name, TOKENIZER_CONFIG, field) or {}).get("tokenizer_class"))
    if tokenizer_class.removesuffix("Fast") == _WELL_CONVERTED.get(shape.model_type):
        return []
    line = (
        f"{field}: {name} has its tokenizer as {_MODEL} alone, and what Transformers 5 makes of it "
        f"for {shape.model_type} leaves out the space before a text; put the model's "
        "tokenizer.json beside it"
    )
    return [line]


def _special_token_warning(
    name: str, source: str, tokens: Mapping[str, int], config: Mapping[str, Any], field: str
) -> list[str]:
    """Whether the special tokens have other ids than the config.json of the model says."""
    generation: Mapping[str, Any] = {}
    with suppress(BadInput):  # of no consequence for the tokenizer
        generation = read_local(source, "generation_config.json", field) or {}
    odd = []
    for role, token in special_tokens(name, field).items():
        wanted = _ids(config.get(f"{role}_id"))
        index = tokens.get(token)
        if index is None or not wanted or index in wanted | _ids(generation.get(f"{role}_id")):
            continue
        names = " or ".join(map(str, sorted(wanted)))
        odd.append(f"{role} is {token!r} with the id {index}, config.json says {names}")
    if not odd:
        return []
    line = (
        f"{field}: the special tokens of the tokenizer in {name} are not those of the model "
        f"({'; '.join(odd)}); correct the wrong one of the two files, or give the model's own "
        "tokenizer"
    )
    return [line]


def _ids(value: object) -> set[int]:
    """The ids that a field of a config.json names, which may be a number or a list."""
    values = value if isinstance(value, list) else [value]
    return {index for index in values if type(index) is int and index >= 0}
