"""Decoded pictures kept in memory, and whether they fit."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from concertormer_jax.data.images import image_size, read_rgb
from concertormer_jax.errors import UserError

_HEADER_THREADS = 16


class ImageReader:
    """`reader(path)` gives the decoded picture, uint8 [H, W, 3], read-only; if `cached`, each file is decoded once.

    Any number of threads may call it. The cache fills as pictures are asked for.
    """

    def __init__(self, cached: bool):
        self._images = {} if cached else None

    def __call__(self, path) -> np.ndarray:
        if self._images is None:
            return read_rgb(path)
        image = self._images.get(path)
        if image is None:
            decoded = read_rgb(path)
            decoded.flags.writeable = False
            # Two threads may decode the same file at once; setdefault lets both go on with the first.
            image = self._images.setdefault(path, decoded)
        return image


def image_sizes(paths) -> list[tuple[int, int]]:
    """Return (height, width) of every file, from the headers, read in threads; a bar shows if it takes long.

    Raises UserError naming the first file that is missing or no picture.
    """
    paths = list(paths)
    with ThreadPoolExecutor(_HEADER_THREADS) as threads:
        sizes = threads.map(image_size, paths)
        return list(tqdm(sizes, total=len(paths), desc="reading picture sizes", unit="file", delay=2, leave=False))


def decoded_bytes(paths) -> int:
    """Return the bytes that the decoded pictures take together, from their headers."""
    return sum(3 * height * width for height, width in image_sizes(paths))


def require_memory_for(paths) -> int:
    """Return `decoded_bytes(paths)`; raise UserError with both numbers if that is more than the memory available."""
    needed, available = decoded_bytes(paths), available_memory_bytes()
    if needed > available:
        raise UserError(
            f"the cache of decoded pictures takes {needed / 2**30:.1f} GiB but {available / 2**30:.1f} GiB of memory "
            "are available; switch the cache off or train on fewer pictures."
        )
    return needed


def available_memory_bytes() -> int:
    """Return how much memory this process can still take: the machine's, or the container's if that is less."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux: all of the machine's memory is the best that can be said
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return min(available, limit - int(used["anon"]))
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return available
