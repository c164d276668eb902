"""A digest of a model's files, by which its measurements are found again."""

import hashlib
from pathlib import Path

from drpruning.common.files import unreadable
from drpruning.common.hub import local_file
from drpruning.models.files import weight_files

_SUFFIXES = {".json", ".model", ".txt"}
"""Of the files beside the weights: settings, tokenizer, index; not the card."""


def model_fingerprint(folder: Path, field: str = "model.source") -> str:
    """A digest of 32 hexadecimal digits; equal digests mean equal weights, settings and tokenizer.

    Every byte is read, at about a gigabyte a second: sizes and times would stay the same where
    weights are replaced by others of the same shape within a clock's tick, or copied with their
    times, and a score of the wrong model is worse than some seconds.

    Args:
        folder: Of the model.
        field: What named it, for the message.

    Raises:
        BadInput: It has no safetensors weights, or a file cannot be read.
    """
    files = {file.name: file for file in weight_files(folder, field)}
    beside = (file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    files |= {file.name: file for file in beside}
    digest = hashlib.blake2b(digest_size=16)
    for name, file in sorted(files.items()):
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "blake2b")
        except OSError as error:
            raise unreadable(f"{field}: {file}", error) from None
        # Names are of any length, digests of one: nothing can be read in two ways.
        digest.update(len(name.encode()).to_bytes(4, "big") + name.encode() + content.digest())
    return digest.hexdigest()


def model_folder(name: str, field: str = "model.source") -> Path | None:
    """The folder of a model on this machine; None for one on the Hub that is not in the cache.

    Args:
        name: A folder, or a name on the Hub with or without a revision.
        field: What named it, for the message.
    """
    config = local_file(name, "config.json", field)
    return None if config is None else config.parent
