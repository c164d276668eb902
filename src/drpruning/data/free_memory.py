"""How much memory there is left to use."""

from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def free_memory() -> int | None:
    """Bytes that are free on this machine, at most what a container may use.

    Returns:
        None where the system does not say.
    """
    found = [int(text) for file in _LIMITS if (text := _read(file).strip()).isdecimal()]
    for line in _read(_MEMORY).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    return min(found, default=None)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
