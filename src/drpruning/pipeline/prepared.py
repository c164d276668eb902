"""The data of a recipe: what its settings mean to the data package, and what was prepared before.

Once the prepared data are complete, the text is not needed any more.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.data import (
    DocumentFormat,
    DomainSource,
    PreparedData,
    describe_documents,
    may_be_hub_name,
)
from drpruning.data.fingerprint import Identity, identify, identity_differences
from drpruning.data.preparation import mismatch_message
from drpruning.data.remote import RemoteText, is_address, without_secrets
from drpruning.data.sources import resolve
from drpruning.data.text_files import TextFiles
from drpruning.data.tokenization import DocumentTokenizer
from drpruning.recipe import Domain, Recipe


def document_format(recipe: Recipe) -> DocumentFormat:
    """What a recipe says of the documents' markers and of special tokens in them."""
    data = recipe.data
    return DocumentFormat(special_tokens=data.special_tokens, bos=data.bos, eos=data.eos)


def documents_line(recipe: Recipe) -> str:
    """Say in one line what will be done with each document beside splitting it into tokens.

    Args:
        recipe: Names the tokenizer, of which only files on this machine are read.

    Raises:
        BadInput: The tokenizer lacks a token that documents should begin or end with.
    """
    return describe_documents(recipe.model.tokenizer_source, document_format(recipe))


def domain_sources(recipe: Recipe) -> list[DomainSource]:
    """The recipe's domains as the data package takes them, relative paths joined to data.root."""
    root = recipe.data.root
    return [_domain_source(name, domain, root) for name, domain in recipe.data.domains.items()]


def _domain_source(name: str, domain: Domain, root: str | None) -> DomainSource:
    """One domain; where it is only evaluated, nothing but its validation text is read."""
    trained, source, validation = domain.trained, domain.source, domain.validation
    validation_alone = False
    if not trained and validation is not None:
        source, validation, validation_alone = validation, None, True
    return DomainSource(
        name=name,
        source=_place(source, root),
        text_field=domain.text_field,
        where=domain.where,
        validation=None if validation is None else _place(validation, root),
        split="validation" if validation_alone else domain.split,
        config=domain.config,
        trained=trained,
        source_field="validation" if validation_alone else "source",
    )


def _place(text: str, root: str | None) -> str:
    """Where a source is: below `data.root`, unless it is an address or a dataset on the Hub."""
    if root is None or "://" in text:
        return text
    below = Path(root, text)
    if below.exists():
        return str(below)
    on_the_hub = may_be_hub_name(text) and not Path(text).exists()
    return text if on_the_hub else str(below.absolute())  # ROOT/NAME could be a name there


def complete_data(recipe: Recipe, sources: Sequence[DomainSource]) -> PreparedData | None:
    """The prepared data in the recipe's folder, where they are complete and of its settings.

    Text and tokenizer are not looked at, but for the names of files and folders.

    Args:
        recipe: Gives the folder and the settings of the data.
        sources: The domains.

    Raises:
        BadInput: They are complete and of other settings or domains, which preparing would refuse.
    """
    try:
        prepared = PreparedData.open(recipe.prepared_folder)
    except (BadInput, OSError):  # none, unfinished, or not ours: preparing says what is wrong
        return None
    if different := identity_differences(prepared.identity, _known_identity(recipe, sources)):
        raise BadInput(mismatch_message(prepared.folder, different))
    same = prepared.document_format == document_format(recipe) and all(
        _can_be_of(source, prepared) for source in sources
    )
    return prepared if same else None


def _known_identity(recipe: Recipe, sources: Sequence[DomainSource]) -> Identity:
    """What identifies prepared data, as far as the recipe says it."""
    return {
        "settings": {
            "sequence_length": recipe.data.sequence_length,
            "validation_blocks": recipe.data.validation_blocks,
            "special_tokens": recipe.data.special_tokens,
        },
        "domains": {
            source.name: {
                "text_field": source.text_field,
                "where": json.loads(json.dumps(dict(source.where), default=str)),
                "trained": source.trained,
            }
            for source in sources
        },
    }


def _can_be_of(source: DomainSource, prepared: PreparedData) -> bool:
    """Whether prepared data can be of a domain, as far as the names of its text say."""
    saved, places = prepared.identity["domains"][source.name], prepared.places[source.name]
    return (
        ("order" in saved) == source.in_order
        and _is_same_name(source.source, places["source"])
        and _is_same_name(source.validation, places["validation"])
    )


def _is_same_name(place: str | None, saved: str | None) -> bool:
    """Whether a source is the saved one, which may have moved to another folder."""
    if place is None or saved is None:
        return place is saved
    if is_address(place) or is_address(saved):
        return without_secrets(place) == saved
    return Path(place).name == Path(saved).name


def missing_text(prepared: PreparedData, sources: Sequence[DomainSource]) -> list[str]:
    """The domains whose text is not where the recipe says, or at an address, where none looks.

    Args:
        prepared: What `complete_data` found.
        sources: The domains.
    """
    return [
        source.name
        for source in sources
        if not _is_there(source, prepared.identity["domains"][source.name])
    ]


def missing_text_warnings(sources: Sequence[DomainSource], missing: Collection[str]) -> list[str]:
    """One line for each domain of which only the prepared data are used.

    Args:
        sources: The domains.
        missing: What `missing_text` found.
    """
    return [
        f"data.domains.{source.name}: its text is "
        f"{'at an address and not looked at again' if is_address(source.source) else 'missing'}; "
        "the data prepared from it are used"
        for source in sources
        if source.name in missing
    ]


def _is_there(source: DomainSource, saved: Mapping[str, Any]) -> bool:
    try:
        found = {"source": resolve(source)}
        if source.validation is not None:
            found["validation"] = resolve(source, validation=True)
    except (BadInput, OSError):
        return False
    if any(isinstance(part, RemoteText) for part in found.values()):
        return False
    # A name such as texts/web is looked for on the Hub once there is no folder of that name.
    return all(isinstance(found[part], TextFiles) or not isinstance(saved[part], list)
               for part in found)  # fmt: skip


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
    saved = prepared.identity["domains"]
    current = identify(sources, tokenizer_digest="", settings={})["domains"]
    changed = [f"the text of {name}" for name in current if current[name] != saved.get(name)]
    loaded = DocumentTokenizer.load(tokenizer, None, prepared.document_format)
    settings = prepared.identity["settings"]
    if (
        loaded.digest != prepared.tokenizer_digest
        or not loaded.settings.items() <= settings.items()
    ):
        changed.insert(0, "the tokenizer")
    if changed:
        raise BadInput(
            f"data.prepared: {prepared.folder} was made with something else than the recipe names "
            f"({', '.join(changed)}), and the text of {', '.join(lacking)} is missing; put these "
            "back, or remove the folder to prepare again"
        )
