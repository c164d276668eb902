"""What the JSON files of a tokenizer say, without loading it. Importable without Transformers."""

from collections.abc import Mapping
from typing import Any

from drpruning.common.files import read_json_object
from drpruning.common.hub import local_file

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
LARGEST_TOKENIZER = 1_000_000_000
"""Bytes of a tokenizer.json, at most; those of 256,000 tokens have some 35 million."""


def read_local(name: str, file: str, field: str) -> dict[str, Any] | None:
    """Read a JSON file of a tokenizer; None where it is neither in the folder nor in the cache.

    Args:
        name: folder or Hub name.
        file: name of the file.
        field: the recipe field to name in errors.

    Raises:
        BadInput: it cannot be read, or holds no JSON object.
    """
    path = local_file(name, file, field)
    return None if path is None else read_json_object(path, field, LARGEST_TOKENIZER)


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, added tokens included, from the content of a tokenizer.json.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not of the form that it should have.
    """
    entries = tokenizer["model"]["vocab"]
    if isinstance(entries, list):  # of Unigram: pairs of token and score
        entries = {token: index for index, (token, _) in enumerate(entries)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    tokens: dict[str, int] = entries | added
    return tokens


def read_settings(name: str, field: str) -> dict[str, Any]:
    """Read tokenizer_config.json, and the older special_tokens_map.json where it counts.

    Transformers reads the older file only where the newer one does not list the added tokens.

    Args:
        name: folder or Hub name.
        field: the recipe field to name in errors.

    Raises:
        BadInput: a file cannot be read, or holds no JSON object.
    """
    settings = read_local(name, TOKENIZER_CONFIG, field) or {}
    if "added_tokens_decoder" not in settings:
        settings |= read_local(name, SPECIAL_TOKENS_MAP, field) or {}
    return settings


def token_text(entry: object) -> str | None:
    """The text of a token that is written as text or as an object; None where it is neither."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) else None
