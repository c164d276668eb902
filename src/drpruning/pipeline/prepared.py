"""The prepared data of a recipe: once they are complete, the text is not needed any more."""

import json
from collections.abc import Sequence
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, PreparedData, tokenizer_digest
from drpruning.data.blocks import read_manifest
from drpruning.data.fingerprint import identify
from drpruning.data.sources import resolve
from drpruning.recipe import Recipe


def complete_data(recipe: Recipe, sources: Sequence[DomainSource]) -> PreparedData | None:
    """The prepared data in the recipe's folder, where they are complete and of its settings.

    The text and the tokenizer are not looked at.

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
    same = settings.items() <= identity.get("settings", {}).items()
    made_of = {name: _how_read(part) for name, part in identity.get("domains", {}).items()}
    asked = {
        source.name: _how_read(
            {
                "text_field": source.text_field,
                "where": json.loads(json.dumps(dict(source.where), default=str)),
                "validation": source.validation,
            }
        )
        for source in sources
    }
    return prepared if same and made_of == asked else None


def _how_read(part: dict[str, Any]) -> tuple[Any, Any, bool]:
    return part.get("text_field"), part.get("where"), part.get("validation") is not None


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
