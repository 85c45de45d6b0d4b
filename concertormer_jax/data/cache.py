"""Decoded pictures kept in memory, and whether they fit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from concertormer_jax.data.images import image_size, read_rgb
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.memory import available_memory_bytes

_HEADER_THREADS = 16


class ImageReader:
    """`reader(key)` gives the picture that `read(key)` decodes, read-only; if `cached`, each is decoded once.

    Any number of threads may call it. The cache fills as pictures are asked for.
    read: key to uint8 array; None: `read_rgb`, whose keys are paths.
    """

    def __init__(self, cached: bool, read=None):
        self._images = {} if cached else None
        self._decode = read or read_rgb

    def __call__(self, key) -> np.ndarray:
        if self._images is None:
            return self._decode(key)
        image = self._images.get(key)
        if image is None:
            decoded = self._decode(key)
            decoded.flags.writeable = False
            # Two threads may decode the same picture at once; setdefault lets both go on with the first.
            image = self._images.setdefault(key, decoded)
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


def require_memory_for(source) -> int:
    """Return `source.decoded_bytes()`, what a cache of its pictures takes; UserError if that is more than available."""
    needed, available = source.decoded_bytes(), available_memory_bytes()
    if needed > available:
        raise UserError(
            f"the cache of decoded pictures takes {needed / 2**30:.1f} GiB but {available / 2**30:.1f} GiB of memory "
            "are available; switch the cache off (config.run.cache=False) or train on fewer pictures."
        )
    return needed
