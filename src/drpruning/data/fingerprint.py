"""The identity of prepared data: tokenizer, settings and the content of the sources."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.data.remote import RemoteFile
from drpruning.data.sources import DomainSource, Source, locate, unreadable
from drpruning.data.text_files import TextFile, TextFiles

_END_BYTES = 1 << 16
_MIDDLE_BYTES = 1 << 14
_MIDDLE_PIECES = 8
_TRAINED = "trained"

Identity = dict[str, Any]


def identify(
    domains: Sequence[DomainSource], *, tokenizer_digest: str, settings: dict[str, Any]
) -> Identity:
    """Collect everything that decides the prepared blocks, as plain JSON values.

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
    """Digest an identity to 32 hexadecimal digits, which differ where the identity does."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def identity_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], part: str = "{}"
) -> list[str]:
    """Describe each difference between saved data and the data that is asked for.

    Args:
        saved: an `Identity`, or only some of its parts.
        current: another one, with the same parts.
        part: words for one entry of a domain, with {} for its key.
    """
    found = []
    if "tokenizer" in current and saved.get("tokenizer") != current["tokenizer"]:
        found.append("the tokenizer")
    settings = saved.get("settings", {})
    for key, value in current.get("settings", {}).items():
        if settings.get(key) != value:
            found.append(f"{key} (saved {settings.get(key)}, now {value})")
    old, new = saved["domains"], current["domains"]
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            found.append(f"domain {name} (no longer given)")
        elif name not in old:
            found.append(f"domain {name} (new)")
        else:
            keys = [key for key in new[name] if old[name].get(key) != new[name][key]]
            found += [f"the {part.format(key)} of domain {name}" for key in keys if key != _TRAINED]
            if old[name].get(_TRAINED, True) != new[name].get(_TRAINED, True):
                found.append(f"whether domain {name} is trained on (share above 0)")
    return found


def check_unchanged(domain: DomainSource, identity: Identity) -> None:
    """Refuse a domain whose text has changed while it was read.

    Args:
        domain: as it was given to `identify`.
        identity: its part of the result, from before the text was read.

    Raises:
        BadInput: a file was removed, added, shortened or replaced since.
    """
    current: Identity = json.loads(json.dumps(_domain_identity(replace(domain)), default=str))
    if current != identity:
        changed = " and ".join(key for key in current if current[key] != identity[key])
        raise BadInput(
            f"data.domains.{domain.name}.{changed}: the text was changed while it was read; leave "
            "it as it is during the preparation, and run the same command again"
        )


def _domain_identity(domain: DomainSource) -> Identity:
    label = f"data.domains.{domain.name}"
    validation = None
    if domain.validation is not None:
        validation = _source_identity(locate(domain, validation=True), f"{label}.validation")
    # Named only where it is false, so that data prepared before it was known stay what they are.
    use: Identity = {} if domain.trained else {_TRAINED: False}
    if domain.in_order:
        use["order"] = "as given"
    return use | {
        "text_field": domain.text_field,
        "where": dict(domain.where),
        "source": _source_identity(locate(domain), f"{label}.{domain.source_field}"),
        "validation": validation,
    }


def _source_identity(source: Source, label: str) -> Any:
    if isinstance(source, TextFiles):
        return [_file_identity(file, label) for file in source.files]
    identity: dict[str, Any] = {
        "dataset": source.name,
        "config": source.config,
        "split": source.split,
    }
    if source.folder is not None:
        files = sorted(f for f in source.folder.rglob("*.arrow") if f.is_file())
        identity["files"] = [_file_identity(file, label) for file in files]
    return identity


def _file_identity(file: TextFile, label: str) -> dict[str, Any]:
    """Name, size and a digest of samples, or of what a server says of the file's version.

    Raises:
        BadInput: the file cannot be read.
    """
    if isinstance(file, RemoteFile):
        version = hashlib.blake2b(str(file.version).encode(), digest_size=16).hexdigest()
        return {"file": file.name, "bytes": file.size, "version": version}
    try:
        return _sampled(file)
    except OSError as error:
        raise unreadable(label, file, error) from error


def _sampled(file: Path) -> dict[str, Any]:
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
