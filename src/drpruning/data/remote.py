"""Files at addresses that fsspec knows: object stores, web servers, the Hub and others.

Nothing here is called for a plan, which must not wait for a network: only what prepares data looks
at an address. Passwords and signed queries in addresses are in no message and in no manifest.
"""

import io
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from typing import IO, Any

from drpruning.common.errors import BadInput

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_USER = re.compile(r"://[^/@\s'\"]*@")
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", re.IGNORECASE)
_BUFFER = 1 << 20
_IN_THE_EXTRA = {"s3", "s3a", "gs", "gcs", "http", "https"}
_LOGGERS = ("fsspec", "s3fs", "gcsfs", "aiobotocore", "botocore")
_VERSIONS = (
    "md5Hash", "crc32c", "Content-MD5", "content_md5", "ETag", "etag", "blob_id", "generation",
    "VersionId", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "modified",
    "created",
)  # fmt: skip
"""What file systems call that which changes with a file's content, the best first."""


@dataclass(frozen=True)
class RemoteText:
    """A source at an address that nothing has looked at yet."""

    address: str

    def __str__(self) -> str:
        return without_secrets(self.address)


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address.

    Attributes:
        address: of the file, without passwords.
        path: what the file system calls it.
        size: bytes, None where the server does not say.
        version: what the file system says of its content, None where that is nothing.
    """

    address: str
    path: str = field(repr=False)
    size: int | None
    version: str | None
    _file_system: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.partition("?")[0].rstrip("/").rpartition("/")[2]

    def open(self) -> IO[bytes]:
        """Open the file to read its bytes, which come in pieces."""
        # Files of fsspec have no `readline` with a limit, and no `read1`.
        return io.BufferedReader(self._file_system.open(self.path, "rb"), _BUFFER)


def is_address(source: str) -> bool:
    """Whether a source is an address such as s3://bucket/key, not one of this machine (file://)."""
    match = _ADDRESS.match(source)
    return match is not None and match[1].lower() != "file"


def without_secrets(text: str) -> str:
    """A text with addresses in it, without user names, passwords and the queries of web pages."""
    return _QUERY.sub(r"\1?...", _USER.sub("://", text))


def check_address(address: str, label: str) -> None:
    """Refuse an address of a kind that cannot be read here; nothing is sent.

    Where fsspec is not installed, as for a plan on another machine, nothing is known of it.

    Raises:
        BadInput: fsspec does not know the scheme, or the package for it is not installed.
    """
    if find_spec("fsspec") is None:
        return
    from fsspec import get_filesystem_class

    scheme = address.partition("://")[0].lower()
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        extra = "`pip install 'drpruning[remote]'`" if scheme in _IN_THE_EXTRA else "its package"
        raise BadInput(
            f"{label}: {without_secrets(address)}: what reads {scheme}:// is not installed "
            f"({error}); install {extra}"
        ) from None
    except ValueError:
        raise BadInput(
            f"{label}: {without_secrets(address)}: {scheme}:// is unknown; write s3://, gs://, "
            "https://, hf:// or another that fsspec knows, or a path"
        ) from None


def list_files(address: str, label: str) -> tuple[list[RemoteFile], str | None]:
    """The files that an address names, and the path of the folder where it names one.

    Args:
        address: of a file or of a folder, or a glob.
        label: the recipe field to name in errors.

    Raises:
        BadInput: there is nothing, or it cannot be reached.
    """
    check_address(address, label)
    from fsspec.core import url_to_fs

    # Python prints what nobody handles, and the tracebacks of retries would hide our one message.
    for logger in map(logging.getLogger, _LOGGERS):
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())

    try:
        system, path = url_to_fs(address)
        system.invalidate_cache()  # it may have changed since the last look
        if _has_magic(address):
            found = system.glob(path, detail=True)
            infos, folder = [info for info in found.values() if info["type"] == "file"], None
            if not infos:
                raise BadInput(f"{label}: no file matches {without_secrets(address)}")
        else:
            info = system.info(path)
            folder = f"{path.rstrip('/')}/" if info["type"] == "directory" else None
            infos = [info] if folder is None else list(system.find(path, detail=True).values())
        # A listing that is a web page has names alone.
        infos = [i if _version(i) is not None else system.info(i["name"]) for i in infos]
    except BadInput:
        raise
    except Exception as error:  # each file system has errors of its own
        raise unreachable(label, address, error) from None
    files = [
        RemoteFile(
            address=without_secrets(system.unstrip_protocol(info["name"])),
            path=info["name"],
            size=info.get("size"),
            version=_version(info),
            _file_system=system,
        )
        for info in infos
    ]
    return sorted(files, key=lambda file: file.path), folder


def unreachable(label: str, address: str, error: Exception) -> BadInput:
    """Make the error for an address that cannot be read."""
    shown = without_secrets(address)
    if isinstance(error, FileNotFoundError):
        return BadInput(f"{label}: {shown} does not exist or cannot be reached; name another")
    if isinstance(error, PermissionError):
        return BadInput(
            f"{label}: {shown} cannot be read: permission denied; give the credentials that its "
            "package looks for (environment variables or its configuration file)"
        )
    reason = without_secrets(str(error).strip()) or type(error).__name__
    return BadInput(
        f"{label}: {shown} cannot be read: {reason}; see that it can be reached with the "
        "credentials that its package finds"
    )


def _has_magic(address: str) -> bool:
    """Whether an address is a glob; a question mark begins the query of a web page."""
    is_web = address.lower().startswith(("http://", "https://"))
    path = address.partition("?")[0] if is_web else address
    return any(sign in path for sign in "*[?")


def _version(info: Mapping[str, Any]) -> str | None:
    for name in _VERSIONS:
        value = info.get(name)
        if value is None:
            continue
        if isinstance(value, datetime):  # a number in some answers of the same file system
            value = value.timestamp()
        return f"{name} {value}"
    return None
