"""What prepared data depends on: tokenizer, settings and the content of the sources."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drpruning.data.sources import DomainSource, HubDataset, LocalFiles, resolve

_END_BYTES = 1 << 16
_MIDDLE_BYTES = 1 << 14
_MIDDLE_PIECES = 8

Identity = dict[str, Any]


def identify(
    domains: Sequence[DomainSource], *, tokenizer_digest: str, settings: dict[str, int]
) -> Identity:
    """Everything that decides which blocks come out, as plain JSON values.

    A file counts by its name, size and samples of its content (head, tail and pieces between), not
    by its time or folder; a dataset on the Hub by its name, configuration and split.
    """
    identity = {
        "tokenizer": tokenizer_digest,
        "settings": settings,
        "domains": {domain.name: _domain_identity(domain) for domain in domains},
    }
    plain: Identity = json.loads(json.dumps(identity, default=str))
    return plain


def fingerprint_of(identity: Identity) -> str:
    """32 hexadecimal digits that differ where the identity does."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(there: Identity, here: Identity) -> list[str]:
    """What differs between prepared data and what is asked for, in words."""
    found = []
    if there["tokenizer"] != here["tokenizer"]:
        found.append("the tokenizer")
    for key, value in here["settings"].items():
        if there["settings"].get(key) != value:
            found.append(f"{key} ({there['settings'].get(key)} there, {value} here)")
    for name in [*there["domains"], *(set(here["domains"]) - set(there["domains"]))]:
        if name not in here["domains"]:
            found.append(f"domain {name} (only there)")
        elif name not in there["domains"]:
            found.append(f"domain {name} (only here)")
        else:
            old, new = there["domains"][name], here["domains"][name]
            found += [f"the {key} of domain {name}" for key in new if old.get(key) != new[key]]
    return found


def _domain_identity(domain: DomainSource) -> Identity:
    own = domain.validation is not None
    return {
        "text_field": domain.text_field,
        "where": dict(domain.where),
        "source": _source_identity(resolve(domain)),
        "validation": _source_identity(resolve(domain, validation=True)) if own else None,
    }


def _source_identity(source: LocalFiles | HubDataset) -> Any:
    if isinstance(source, LocalFiles):
        return [_file_identity(file) for file in source.files]
    identity: dict[str, Any] = {
        "dataset": source.name,
        "config": source.config,
        "split": source.split,
    }
    if source.folder is not None:
        files = sorted(f for f in source.folder.rglob("*.arrow") if f.is_file())
        identity["files"] = [_file_identity(file) for file in files]
    return identity


def _file_identity(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        if size <= 2 * _END_BYTES + _MIDDLE_PIECES * _MIDDLE_BYTES:
            digest.update(stream.read())
        else:
            digest.update(stream.read(_END_BYTES))
            for piece in range(1, _MIDDLE_PIECES + 1):
                stream.seek(size * piece // (_MIDDLE_PIECES + 1))
                digest.update(stream.read(_MIDDLE_BYTES))
            stream.seek(size - _END_BYTES)
            digest.update(stream.read(_END_BYTES))
    return {"file": file.name, "bytes": size, "sample": digest.hexdigest()}
