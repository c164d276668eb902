"""The prepared data of a recipe: once they are complete, the text is not needed any more."""

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, PreparedData, tokenizer_digest
from drpruning.data.blocks import read_manifest
from drpruning.data.fingerprint import identify
from drpruning.data.sources import EXTENSIONS, resolve
from drpruning.recipe import Recipe


def complete_data(recipe: Recipe, sources: Sequence[DomainSource]) -> PreparedData | None:
    """The prepared data in the recipe's folder, where they are complete and of its settings.

    Text and tokenizer are not looked at, but for the names of files.

    Args:
        recipe: Gives the folder, block length and number of validation blocks.
        sources: The domains.
    """
    try:
        manifest = read_manifest(recipe.prepared_folder)
        prepared = PreparedData.open(recipe.prepared_folder)
    except (BadInput, OSError):  # none, unfinished, or not ours: preparing says what is wrong
        return None
    identity = manifest["identity"] if manifest else {}
    settings = {
        "sequence_length": recipe.data.sequence_length,
        "validation_blocks": recipe.data.validation_blocks,
    }
    saved = identity.get("domains", {})
    same = (
        settings.items() <= identity.get("settings", {}).items()
        and saved.keys() == {source.name for source in sources}
        and all(_can_be_of(source, saved[source.name]) for source in sources)
    )
    return prepared if same else None


def _can_be_of(source: DomainSource, saved: dict[str, Any]) -> bool:
    """Whether prepared data can be of a domain, as far as its settings and names say."""
    return (
        saved.get("text_field") == source.text_field
        and saved.get("where") == json.loads(json.dumps(dict(source.where), default=str))
        and _can_name(source.source, saved.get("source"))
        and _can_name(source.validation, saved.get("validation"))
    )


def _can_name(place: str | None, saved: Any) -> bool:
    """Whether a path or glob can name the saved files; a folder or dataset may hold any."""
    if place is None or saved is None:
        return place is saved
    if not isinstance(saved, list) or not place.endswith(EXTENSIONS):
        return True
    name = Path(place).name
    files = [file["file"] for file in saved]
    return name in files or any(fnmatch(file, name) for file in files)


def missing_text(sources: Sequence[DomainSource]) -> list[str]:
    """The domains whose text is not where the recipe says."""
    return [source.name for source in sources if not _is_there(source)]


def _is_there(source: DomainSource) -> bool:
    try:
        resolve(source)
        if source.validation is not None:
            resolve(source, validation=True)
    except (BadInput, OSError):
        return False
    return True


def check_made_from(
    prepared: PreparedData, sources: Sequence[DomainSource], tokenizer: str, lacking: Sequence[str]
) -> None:
    """Compare prepared data with what is left of what they were made from.

    Args:
        prepared: What `complete_data` found.
        sources: The domains whose text is still where the recipe says.
        tokenizer: Folder or Hub name.
        lacking: The domains whose text is missing.

    Raises:
        BadInput: The tokenizer or one of these texts has changed, so that the data would have to
            be prepared again, which takes the missing text.
    """
    manifest = read_manifest(prepared.folder)
    saved = manifest["identity"]["domains"] if manifest else {}
    current = identify(sources, tokenizer_digest="", settings={})["domains"]
    changed = [f"the text of {name}" for name in current if current[name] != saved.get(name)]
    if tokenizer_digest(tokenizer) != prepared.tokenizer_digest:
        changed.insert(0, "the tokenizer")
    if changed:
        raise BadInput(
            f"data.prepared: {prepared.folder} was made with something else than the recipe names "
            f"({', '.join(changed)}), and the text of {', '.join(lacking)} is missing; put these "
            "back, or remove the folder to prepare again"
        )
