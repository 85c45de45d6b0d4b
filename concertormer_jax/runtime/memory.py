"""The memory that this process can still take, and the refusal of what needs more."""

import os
from pathlib import Path

from concertormer_jax.runtime.errors import UserError

_LITTLE_BYTES = 2**28  # less than this is never refused


def available_memory_bytes() -> int:
    """Return the bytes that this process can still take: the machine's free memory, or the container's if less."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: the free memory is not known, so all memory counts as free
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return min(available, limit - int(used["anon"]))
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return available


def require_memory(needed_bytes: int, what: str) -> None:
    """Raise UserError, whose subject is `what`, if more bytes are needed than are available."""
    if needed_bytes <= _LITTLE_BYTES or needed_bytes <= (available := available_memory_bytes()):
        return
    raise UserError(
        f"{what} needs {needed_bytes / 2**30:.1f} GiB of memory but {available / 2**30:.1f} GiB are available; make "
        "the picture smaller, cut it, or use a machine with more memory."
    )
