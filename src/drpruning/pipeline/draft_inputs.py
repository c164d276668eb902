"""What a first recipe is written for, as people name it: a model, and text in domains."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from drpruning.common.errors import BadInput
from drpruning.common.files import FOLDER_NAME
from drpruning.data import DomainSource, check_sources, estimate_tokens, may_be_hub_name
from drpruning.data.remote import is_address
from drpruning.data.text_files import COMPRESSIONS, READABLE, kind_of, search_folder
from drpruning.models.files import positions, read_config
from drpruning.models.inspect import SOURCE_FIELD, check_model
from drpruning.pruning import ModelShape
from drpruning.recipe.paths import expand_path

TRAINING_NAMES = {"train", "training"}
VALIDATION_NAMES = {"validation", "valid", "val", "dev"}
"""Names of files, without their endings, that tell the two parts of one domain."""
_NUMBERS = re.compile(r"[\d._-]+(of[\d._-]+)?$")
"""What tells the parts of one text that was split over files: web-00001-of-00020."""
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class FoundModel:
    """The model to start from, as far as proposals need it.

    Attributes:
        name: A folder, or a name on the Hub, as the recipe has it.
        shape: Its shape.
        positions: The longest text that it was made for, in tokens; None where it does not say.
    """

    name: str
    shape: ModelShape
    positions: int | None


def find_model(name: str) -> FoundModel:
    """Look at a model; no weights are loaded.

    Raises:
        BadInput: There is none of that name, or it cannot be pruned or trained.
    """
    place = _expanded(name, SOURCE_FIELD)
    shape = check_model(place, SOURCE_FIELD)
    return FoundModel(name, shape, positions(read_config(place, SOURCE_FIELD)))


@dataclass(frozen=True)
class FoundDomain:
    """Text of one domain.

    Attributes:
        name: Of the domain.
        source: A path, an address, or a dataset on the Hub, as the recipe has it.
        validation: A separate file for validation.
        tokens: Estimated tokens of the source; None where that takes reading it.
        on_hub: Whether the source is not on this machine, but may be a dataset on the Hub.
    """

    name: str
    source: str
    validation: str | None = None
    tokens: int | None = None
    on_hub: bool = False

    def size_text(self) -> str:
        """How much text there is, for people."""
        if self.tokens:
            return f"about {self.tokens:,} tokens"
        return "a dataset on the Hub" if self.on_hub else "size not known before it is prepared"


def find_domains(
    text: str, tokenizer: str, earlier: Sequence[FoundDomain] = ()
) -> list[FoundDomain]:
    """Add the domains in a text that someone names to those that were named before.

    Args:
        text: `NAME=PLACE` for one domain, or a place alone. A folder then gives a domain for each
            subfolder with text and each file beside them, but one for files that differ by numbers
            alone, and for a file of training and one of validation text. Any other place is a
            domain with the name of its file or dataset.
        tokenizer: Model whose tokenizer counts.
        earlier: The domains so far.

    Raises:
        BadInput: There is no text that can be read, or two domains have one name or one file.
    """
    name, separator, place = text.partition("=")
    if not separator or not FOLDER_NAME.fullmatch(name):
        name, place = "", text
    path = Path(_expanded(place, "--domain"))
    if not place.strip():
        raise BadInput(f"--domain {text}: write NAME=PATH, or a path")
    if path.is_dir():
        found = [_of_folder(path, place, name)] if name else _of_subfolders(path, place)
    else:
        found = [FoundDomain(name or _name_of(place), place)]
    names = [domain.name.lower() for domain in (*earlier, *found)]
    if twins := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--domain {text}: there are two domains {twins[0]}; write NAME=PATH")
    domains = [*earlier, *(_sized(domain, tokenizer) for domain in found)]
    check_sources([_source(domain) for domain in domains])
    return domains


def _expanded(place: str, label: str) -> str:
    try:
        return expand_path(place)
    except ValueError as error:
        raise BadInput(f"{label}: {error}") from None


def _of_subfolders(folder: Path, place: str) -> list[FoundDomain]:
    shown = place.rstrip("/")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir() and search_folder(entry).files]
    files = [entry for entry in entries if entry.is_file() and kind_of(entry.name)]
    if not folders and not files:
        raise BadInput(f"--domain {place}: the folder has no {READABLE} file")
    in_parts = len({_stem(file.name) for file in files}) == 1
    if not folders and (in_parts or _halves(files)):
        return [_of_folder(folder, place, "")]
    return [
        *(_of_folder(entry, f"{shown}/{entry.name}", "") for entry in folders),
        *(FoundDomain(_name_of(file.name), f"{shown}/{file.name}") for file in files),
    ]


def _of_folder(folder: Path, place: str, name: str) -> FoundDomain:
    """One domain: all of a folder, or its file for training with that for validation."""
    name, shown = name or _name_of(folder.resolve().name), place.rstrip("/")
    if halves := _halves([entry for entry in folder.iterdir() if kind_of(entry.name)]):
        return FoundDomain(name, f"{shown}/{halves[0]}", f"{shown}/{halves[1]}")
    return FoundDomain(name, place)


def _halves(files: Sequence[Path]) -> tuple[str, str] | None:
    """The names of one file for training and one for validation, where there are such."""
    train, validation = (
        [file.name for file in files if _base(file.name).lower() in names]
        for names in (TRAINING_NAMES, VALIDATION_NAMES)
    )
    return (train[0], validation[0]) if len(train) == len(validation) == 1 else None


def _base(name: str) -> str:
    """The name of a file without the endings that tell its kind."""
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return PurePosixPath(name).stem if kind_of(name) else name


def _stem(name: str) -> str:
    return _NUMBERS.sub("", _base(name))


def _name_of(place: str) -> str:
    """The name of a domain for a place."""
    last = _stem(place.rstrip("/").rpartition("/")[2]) or _base(place)
    name = _UNFIT.sub("-", last).strip("-.")[:100]
    return name if FOLDER_NAME.fullmatch(name) and "manifest" not in name else "text"


def _source(domain: FoundDomain) -> DomainSource:
    label = f"data.domains.{domain.name}"
    validation = domain.validation
    return DomainSource(
        name=domain.name,
        source=_expanded(domain.source, label),
        validation=None if validation is None else _expanded(validation, label),
    )


def _sized(domain: FoundDomain, tokenizer: str) -> FoundDomain:
    """The domain with what can be known of its size.

    Raises:
        BadInput: There is no such text.
    """
    source = _source(domain)
    place = source.source
    on_hub = not Path(place).exists() and may_be_hub_name(place)
    if on_hub and "/" not in place:  # rather a file that is missing than a dataset
        raise BadInput(
            f"data.domains.{domain.name}.source: {place} does not exist; name a file, a folder, or "
            "a dataset on the Hub as owner/name"
        )
    tokens = None if is_address(place) else estimate_tokens(source, tokenizer)
    return replace(domain, tokens=tokens, on_hub=on_hub)
