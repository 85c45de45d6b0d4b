"""The cache of decoded pictures in memory, the sizes of pictures by their headers, and whether a cache fits."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from concertormer_jax.data.images import image_size, read_rgb
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.memory import available_memory_bytes
from concertormer_jax.runtime.paths import AnyPath

_HEADER_THREADS = 16


class ImageReader:
    """`reader(key)` is `read(key)`. With `cached`, each picture is decoded once and is read-only.

    Any number of threads may call it. read: (hashable) key to uint8 array; None: `read_rgb`, whose keys are paths.
    """

    def __init__(self, cached: bool, read: Callable[[Any], np.ndarray] | None = None):
        self._images: dict[Any, np.ndarray] | None = {} if cached else None
        self._decode = read or read_rgb

    def __call__(self, key: Any) -> np.ndarray:
        if self._images is None:
            return self._decode(key)
        image = self._images.get(key)
        if image is None:
            decoded = self._decode(key)
            decoded.flags.writeable = False
            # Two threads may decode one picture at the same time; both go on with the array that was stored first.
            image = self._images.setdefault(key, decoded)
        return image


def image_sizes(paths: Iterable[AnyPath]) -> list[tuple[int, int]]:
    """Return (height, width) of every file, from the headers, read in threads; a bar shows after two seconds.

    Raises UserError naming the first file that is missing or no picture.
    """
    paths = list(paths)
    with ThreadPoolExecutor(_HEADER_THREADS) as threads:
        sizes = threads.map(image_size, paths)
        return list(tqdm(sizes, total=len(paths), desc="reading picture sizes", unit="file", delay=2, leave=False))


def decoded_bytes(paths: Iterable[AnyPath]) -> int:
    """Return the bytes that the pictures take together once decoded, from their headers."""
    return sum(3 * height * width for height, width in image_sizes(paths))


class _HasPictures(Protocol):
    def decoded_bytes(self) -> int: ...


def require_memory_for(source: _HasPictures) -> int:
    """Return `source.decoded_bytes()`, the size of a cache of its pictures. Raises UserError if it does not fit."""
    needed, available = source.decoded_bytes(), available_memory_bytes()
    if needed > available:
        raise UserError(
            f"the cache of decoded pictures takes {needed / 2**30:.1f} GiB but {available / 2**30:.1f} GiB of memory "
            "are available; switch the cache off (config.run.cache=False) or train on fewer pictures."
        )
    return needed
