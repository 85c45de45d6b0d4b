"""What a benchmark ran on, and the cores that it may use."""

import contextlib
import os
import platform
from pathlib import Path

from concertormer_jax.runtime.errors import UserError


def processor() -> str:
    """The processor's name, as the system has it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


def use_cores(count: int | None) -> int:
    """Restrict this process and those that it starts to `count` cores; returns how many they have (None: all).

    Raises UserError if there are fewer.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if count is None:
        return len(allowed)
    if count > len(allowed):
        raise UserError(f"--threads={count}: this process may use {len(allowed)} cores only.")
    os.sched_setaffinity(0, allowed[:count])
    return count
