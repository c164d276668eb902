"""The memory of this machine, and how long a document may be to be tokenized in it."""

from pathlib import Path

from drpruning.common.errors import BadInput

MEMORY_PER_BYTE = 12  # 6 to 9 were measured: as read, decoded, encoded, in Arrow, as ids
_MEMORY = Path("/proc/meminfo")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine, at most what a container may use.

    Returns:
        None where the system does not say.
    """
    return _bytes_of("MemAvailable:")


def total_memory() -> int | None:
    """Bytes of memory of this machine, or of its container; None where the system does not say."""
    return _bytes_of("MemTotal:")


def _bytes_of(label: str) -> int | None:
    """The number of bytes of this label, at most what a container may use."""
    found = [int(text) for file in _LIMITS if (text := _read(file).strip()).isdecimal()]
    for line in _read(_MEMORY).splitlines():
        if line.startswith(label):
            found.append(int(line.split()[1]) * 1024)
    return min(found, default=None)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""


def longest_document() -> int | None:
    """Bytes of a document that can be tokenized in the memory that is free; None: not known."""
    free = free_memory()
    return None if free is None else free // MEMORY_PER_BYTE


def too_long(place: str, limit: int) -> BadInput:
    """The error for a document that is longer than the memory allows."""
    return BadInput(
        f"{place}: a document of more than {limit:,} bytes is too long for the memory that is "
        "free here; split it into several"
    )
