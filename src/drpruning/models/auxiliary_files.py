"""The files beside config.json and weights: tokenizer, generation settings, licence, model card.

A result has them as its source has them. Only `tokenizer_config.json` is rewritten, and only where
it says what a reader other than Transformers 5 cannot follow. Importable without torch.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import dumps, read_json_object
from drpruning.common.hub import HUB_NAME, split_revision
from drpruning.data.tokenizer_files import SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, TOKENIZER_FILE
from drpruning.models.files import not_found, optional_file
from drpruning.recipe.yaml_io import parse_yaml

GENERATION = "generation_config.json"
CARD = "README.md"
TOKENIZER_FILES = (
    TOKENIZER_FILE, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, "added_tokens.json",
    "tokenizer.model*", "spiece.model", "sentencepiece*.model", "vocab.json", "vocab.txt",
    "merges.txt", "*.tiktoken", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Patterns of all files of a tokenizer, slow or fast, and of its chat templates."""
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
LICENCE_FILES = tuple(
    f"{spelling}*" for name in _LICENCES for spelling in (name, name.title(), name.lower())
)
"""Patterns of the files that say on what terms a model may be used and passed on."""

_ONLY_TRANSFORMERS_5 = ("local_files_only", "is_local", "backend")
_ANY_FAST_TOKENIZER = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Transformers 5's name of the class -> the one that both versions know."""
_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "min_p": None, "top_h": None,
}  # fmt: skip
"""Generation setting that only sampling reads -> the value that says nothing."""
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_LARGEST_CARD = 10_000_000


def auxiliary_folder(name: str, field: str) -> Path:
    """The folder with a model's auxiliary files: its own, or its snapshot in the Hub's cache.

    Files that the cache lacks are fetched; without a network it is what the cache has.

    Args:
        name: A folder, or a name on the Hub.
        field: What named it, for the message.

    Raises:
        BadInput: It is no folder, and the Hub and its cache do not have it.
    """
    if (folder := Path(name)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    patterns = ["config.json", GENERATION, CARD, *TOKENIZER_FILES, *LICENCE_FILES]
    hub_name, revision = split_revision(name)
    try:
        return Path(snapshot_download(hub_name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the Hub client has a dozen unrelated error types
        raise not_found(name, field, error, "give a folder") from None


def copy_auxiliary_files(model: Path, tokenizer: Path, target: Path) -> None:
    """Copy a tokenizer's files, and a model's licence and generation settings, byte for byte.

    Args:
        model: Folder of the model.
        tokenizer: Folder of the tokenizer.
        target: Where they are copied to.
    """
    found = [(tokenizer, file) for file in _matching(tokenizer, TOKENIZER_FILES)]
    found += [(model, file) for file in _matching(model, (GENERATION, *LICENCE_FILES))]
    for folder, file in found:
        place = target / file.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    copied = target / TOKENIZER_CONFIG
    if copied.is_file() and (plain := _readable_by_all(read_json_object(copied))) is not None:
        copied.write_text(dumps(plain, indent=2) + "\n", encoding="utf-8")


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    yield from sorted(filter(Path.is_file, found))


def _readable_by_all(config: dict[str, Any]) -> dict[str, Any] | None:
    """A tokenizer_config.json without what Transformers 5 alone reads; None where it has nothing.

    `auto_map` goes because the code that it names is not copied.
    """
    plain = {k: v for k, v in config.items() if k not in {"auto_map", *_ONLY_TRANSFORMERS_5}}
    if (kind := plain.get("tokenizer_class")) in _ANY_FAST_TOKENIZER:
        plain["tokenizer_class"] = _ANY_FAST_TOKENIZER[kind]
    if isinstance(plain.get("extra_special_tokens"), list):
        # A list by this name stops Transformers 4, where the name is that of a mapping; both
        # versions read the list by its older name.
        tokens = plain.pop("extra_special_tokens")
        plain.setdefault("additional_special_tokens", tokens)
    return None if plain == config else plain


def card_metadata(name: str, folder: Path) -> dict[str, Any]:
    """What the front matter of a new model's card takes over from the model it was made from.

    Args:
        name: The model: a folder, or a name on the Hub.
        folder: What `auxiliary_folder` found for it.

    Returns:
        `base_model`, the nearest ancestor that has a name on the Hub, and the licence, as far as
        they are known. A path on this machine says nothing to others, so none is among them.
    """
    card = _front_matter(folder / CARD)
    kept: dict[str, Any] = {
        key: card[key] for key in ("license", "license_name", "license_link") if key in card
    }
    if not Path(name).is_dir() and HUB_NAME.fullmatch(hub_name := split_revision(name)[0]):
        return {"base_model": hub_name, **kept}
    ancestor = card.get("base_model")
    made_here = isinstance(tags := card.get("tags"), list) and "drpruning" in tags
    return ({"base_model": ancestor} if made_here and ancestor else {}) | kept


def _front_matter(file: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none that can be read."""
    with suppress(OSError, UnicodeDecodeError, BadInput):
        if file.stat().st_size <= _LARGEST_CARD:
            found = _FRONT_MATTER.match(file.read_text(encoding="utf-8"))
            content = parse_yaml(found[1], str(file)) if found else None
            return content if isinstance(content, dict) else {}
    return {}


def generation_warnings(name: str, field: str) -> list[str]:
    """Warn of generation settings with which some versions of Transformers refuse to save a model.

    Args:
        name: A folder, or a name on the Hub.
        field: The field of the recipe that names it.

    Raises:
        BadInput: The file of these settings is not a JSON object.
    """
    file = optional_file(name, GENERATION, field)
    if file is None:
        return []
    settings = read_json_object(file, field)
    if settings.get("do_sample") is True:
        return []
    odd = [key for key, idle in _SAMPLING.items() if settings.get(key) not in (None, idle)]
    if not odd:
        return []
    warning = (
        f"{field}: the {GENERATION} of {name} has {', '.join(odd)} without do_sample: true; it is "
        "copied to the result as it is, and Transformers 5.17 to 5.22 refuse to save a model that "
        "has it: write do_sample: true in it, or take them out"
    )
    return [warning]
