"""Training batches by position: what a batch holds depends on the seed and its position alone.

It does not depend on the number of hosts, the threads, or where reading started. So there is no iterator to save: a
resumed run asks for the batches from its position on.
"""

import atexit
import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np

from concertormer_jax.data.sources import Part, Sample, Source

_PREFETCHED_BATCHES = 4
_OLDER_KERAS = "TF_USE_LEGACY_KERAS"
_open_iterators: weakref.WeakSet = weakref.WeakSet()


def random_orientation(images: Sample, rng: np.random.Generator, *, flip: bool, rotate: bool) -> Sample:
    """Mirror and turn both images, [H, W, C], alike: left-right and top-bottom if `flip`, by 90 degrees if `rotate`.

    The same random numbers are drawn whatever the switches say, so that a switch changes nothing else about a sample.
    """
    mirror_columns, mirror_rows = rng.integers(2, size=2)
    quarters = int(rng.integers(4))

    def oriented(image: np.ndarray) -> np.ndarray:
        if flip and mirror_columns:
            image = image[:, ::-1]
        if flip and mirror_rows:
            image = image[::-1]
        if rotate:
            image = np.rot90(image, quarters)
        return np.ascontiguousarray(image)

    degraded, target = images
    return oriented(degraded), oriented(target)


def batches(
    source: Source,
    *,
    seed: int,
    position: int,
    batch: int,
    host_index: int,
    host_count: int,
    crop_px: int,
    steps: int | None = None,
    flip: bool = True,
    rotate: bool = True,
    input_dtype: type = np.uint8,
    prefetch: int = _PREFETCHED_BATCHES,
) -> Generator[dict[str, np.ndarray]]:
    """Yield this host's share of `steps` batches (None: without end), the first of which starts at `position`.

    Batch j holds the samples `position + j * batch` to `position + (j + 1) * batch - 1` of an endless stream; host h
    of n gets the h-th of n equal, contiguous parts. Each is a dict of NumPy arrays:
    "input", "target": [batch / host_count, crop_px, crop_px, 3], of the types `input_dtype` (in which all inputs of the
    source must fit) and uint8; "position": int64 [batch / host_count].
    Every picture of a source is seen once per epoch, in an order drawn from (seed, epoch); crop, degradation,
    mirroring (`flip`) and turns by 90 degrees (`rotate`) are drawn from (seed, position).

    Raises ValueError if the batch does not divide over the hosts, and, while iterating, the UserError of a file that
    cannot be read.
    """
    if batch % host_count:
        raise ValueError(f"a batch of {batch} does not divide over {host_count} hosts.")
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index={host_index} must lie in [0, {host_count}).")
    if seed < 0 or position < 0:
        raise ValueError(f"seed={seed} and position={position} must not be negative.")
    iterator = _batches(
        functools.partial(sample, source, seed, crop_px=crop_px, flip=flip, rotate=rotate),
        first=position + host_index * (batch // host_count),
        batch=batch,
        local=batch // host_count,
        crop_px=crop_px,
        steps=steps,
        input_dtype=input_dtype,
        prefetch=prefetch,
    )
    _open_iterators.add(iterator)
    return iterator


def sample(source: Source, seed: int, position: int, *, crop_px: int, flip: bool, rotate: bool) -> Sample:
    """Return (input, target), [crop_px, crop_px, 3] each, of the sample at `position`."""
    part, index = located(source, seed, position)
    # Philox is counter-based: the key (seed, position) gives neighbouring positions unrelated numbers.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))
    return random_orientation(part.crop(index, crop_px, rng), rng, flip=flip, rotate=rotate)


def located(source: Source, seed: int, position: int) -> tuple[Part, int]:
    """Return (the part of the source that serves `position`, the index of the picture in it)."""
    part, position = source.part_at(position)
    epoch, place = divmod(position, len(part))
    return part, int(_shuffled(len(part), seed, epoch)[place])


def sample_names(source: Source, seed: int, positions: Iterable[int]) -> list[str]:
    """Return the names of the pictures at `positions`, for messages."""
    parts = (located(source, seed, int(position)) for position in positions)
    return [part.name(index) for part, index in parts]


@functools.lru_cache(maxsize=16)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _batches(
    read_sample: Callable[[int], Sample],
    *,
    first: int,
    batch: int,
    local: int,
    crop_px: int,
    steps: int | None,
    input_dtype: type,
    prefetch: int,
) -> Generator[dict[str, np.ndarray]]:
    """Yield batches of `local` samples, the first at position `first` and the next one `batch` positions later."""
    tensorflow = _tensorflow()
    failures = []

    def read(position: Any) -> Sample:
        try:
            degraded, target = read_sample(int(position))
            return degraded.astype(input_dtype, casting="safe", copy=False), target
        except Exception as error:
            failures.append(error)
            raise

    def mapped(number: Any) -> dict[str, Any]:
        position = first + number // local * batch + number % local
        pair = tensorflow.numpy_function(read, [position], (input_dtype, np.uint8), stateful=False)
        degraded, target = (tensorflow.ensure_shape(image, (crop_px, crop_px, 3)) for image in pair)
        return {"input": degraded, "target": target, "position": position}

    count = np.iinfo(np.int64).max if steps is None else steps * local
    dataset = (
        tensorflow.data.Dataset.range(count)
        .map(mapped, num_parallel_calls=tensorflow.data.AUTOTUNE, deterministic=True)
        .batch(local, drop_remainder=True)
        .prefetch(prefetch)
    )
    try:
        yield from dataset.as_numpy_iterator()
    except tensorflow.errors.OpError:
        if not failures:
            raise
    # The exception of Python, in place of TensorFlow's, which must be gone: it would keep the iterator and its threads,
    # for which Python waits in vain when it shuts down.
    if failures:
        raise failures[0]


@atexit.register
def _close_iterators() -> None:
    """End TensorFlow's threads before Python shuts down; later they would wait for Python, and Python for them."""
    for iterator in list(_open_iterators):
        with contextlib.suppress(ValueError):  # another thread runs it
            iterator.close()


@contextlib.contextmanager
def _without_keras() -> Generator[None]:
    """Keep TensorFlow from importing Keras 3, which takes a third of its own import: it looks for the older Keras."""
    given = os.environ.get(_OLDER_KERAS)
    os.environ[_OLDER_KERAS] = "1"
    try:
        yield
    finally:
        if given is None:
            del os.environ[_OLDER_KERAS]
        else:
            os.environ[_OLDER_KERAS] = given


@functools.cache
def _tensorflow() -> Any:
    """Import TensorFlow, which is slow, when batches are read first; hide the accelerators from it, which are JAX's."""
    # Otherwise TensorFlow prints notes on its build. Nothing that it computes here would gain from oneDNN.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _without_keras():
        import tensorflow
    for kind in ("GPU", "TPU"):
        tensorflow.config.set_visible_devices([], kind)
    return tensorflow
