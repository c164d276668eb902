"""Paths as people write them in a recipe, with `~` and environment variables."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer, SerializationInfo

_ADDRESS = "://"
_VARIABLE = re.compile(r"\$(?:\$|\{[^{}]*\}|\w*)", re.ASCII)
_BRACED = re.compile(r"\$\{[^{}]*\}")


def expand_path(text: str) -> str:
    """Replace environment variables and the home folder in a path, as a shell does.

    First `$NAME` and `${NAME}`, then `~` or `~USER` at the beginning, so that a variable may hold a
    `~`. `$$` stands for `$`, and `./~name` for a folder of that name. In an address (`s3://...`) a
    `$` may be its own, so only `${NAME}` is replaced there. What is read from a file must then be
    written with `escape_path`.

    Raises:
        ValueError: A variable is not set or empty (`$SCRATCH/run` would be `/run`), a `$` has no
            name, or there is no such user.
    """
    path = (_BRACED if _ADDRESS in text else _VARIABLE).sub(_value, text)
    path = os.path.expanduser(path)  # noqa: PTH111 - Path would drop a leading ./
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"there is no user {user[1:]}; write ./{user} for a folder of that name")
    return path


def _value(match: re.Match[str]) -> str:
    if match[0] == "$$":
        return "$"
    name = match[0].strip("${}")
    if not name:
        raise ValueError("a $ without the name of an environment variable; write $$ for a $")
    if not (value := os.environ.get(name)):
        raise ValueError(f"the environment variable {name} is not set; set it, or write $$ for a $")
    return value


def escape_path(path: str) -> str:
    """Write a path so that `expand_path` gives it back."""
    if _ADDRESS in path:
        return path
    return ("./" if path.startswith("~") else "") + path.replace("$", "$$")


IN_A_FILE = "file"
"""The context of a serialization whose result is read as a recipe again."""


def _serialized(path: str, info: SerializationInfo) -> str:
    return escape_path(path) if info.context == IN_A_FILE else path


PathText = Annotated[str, AfterValidator(expand_path), PlainSerializer(_serialized)]
"""A path, or what may be one: an address, or a name on the Hub (which has neither `~` nor `$`)."""
