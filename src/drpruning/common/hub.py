"""Names on the Hugging Face Hub, and files in its local cache. Nothing here uses a network."""

import re
from pathlib import Path

from drpruning.common.files import is_file

HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
"""Names that a model or a dataset on the Hub can have."""
HUB_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w./+-]{0,199}", re.ASCII)
"""Names that a branch, tag or commit on the Hub can have; none leads out of a folder."""


def split_revision(name: str) -> tuple[str, str]:
    """Split the reference of a model, `NAME@REVISION`, into its name and its revision on the Hub.

    Only a model on the Hub has a revision: the path of a file or folder stays as it is.

    Args:
        name: A folder, or a name on the Hub with or without a revision.

    Returns:
        The name, and the branch, tag or commit: `main` where the reference has none.
    """
    hub_name, _, revision = name.partition("@")
    is_reference = HUB_NAME.fullmatch(hub_name) and HUB_REVISION.fullmatch(revision)
    return (hub_name, revision) if is_reference and not Path(name).exists() else (name, "main")


def local_file(name: str, file: str, field: str) -> Path | None:
    """Find a file of a model in its folder or in the cache of the Hub.

    Args:
        name: A folder, or a name on the Hub with or without a revision.
        file: Name of the file.
        field: The field of the recipe that names the model, for the message.

    Returns:
        None where there is no such file, or the library of the Hub is not installed.

    Raises:
        BadInput: A folder above it does not let us look.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if is_file(path, field) else None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    hub_name, revision = split_revision(name)
    try:
        found = try_to_load_from_cache(hub_name, file, revision=revision)
    except ValueError:  # no name that a model on the Hub can have
        return None
    return Path(found) if isinstance(found, str) else None
