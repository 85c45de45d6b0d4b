"""Training batches by position: what a batch holds depends on the seed and its position alone.

Not on the number of hosts, the threads, or where reading started. So there is no iterator to save: a resumed run asks
for the batches from its position on.
"""

import atexit
import contextlib
import functools
import os
import weakref

import numpy as np

# Cutting and turning crops: pure functions of arrays and a random generator.


def reflected_window(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return image[top : top + height, left : left + width], reflecting at the borders where the window leaves it.

    image: [H, W, C]; top and left may be negative. Equal to a window of `numpy.pad(..., mode="reflect")`, which
    reflects repeatedly where one reflection is not enough and repeats the only pixel of an axis of length 1.
    """
    rows, columns = image.shape[:2]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return image[top : top + height, left : left + width]
    return image[_reflected(top, height, rows)[:, None], _reflected(left, width, columns)[None, :]]


def random_corner(height: int, width: int, crop_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw (top, left) of a crop that lies inside the image; 0 on an axis shorter than the crop."""
    return int(rng.integers(max(height - crop_px, 0) + 1)), int(rng.integers(max(width - crop_px, 0) + 1))


def grid_corners(height: int, width: int, crop_px: int, step_px: int) -> list[tuple[int, int]]:
    """Return (top, left) of the crops that cover a picture row by row, `step_px` apart; the last of each axis ends at
    the border. An axis shorter than the crop has one, at 0.
    """

    def starts(length):
        inside = list(range(0, max(length - crop_px, 0) + 1, step_px))
        return inside if inside[-1] + crop_px >= length else [*inside, length - crop_px]

    return [(top, left) for top in starts(height) for left in starts(width)]


def random_orientation(images, rng: np.random.Generator, *, flip: bool, rotate: bool) -> tuple[np.ndarray, ...]:
    """Mirror and turn all `images` ([H, W, C] each) alike: left-right and top-bottom if `flip`, quarters if `rotate`.

    The same numbers are drawn whatever the switches say, so that a switch changes nothing else about a sample.
    """
    mirror_columns, mirror_rows = rng.integers(2, size=2)
    quarters = int(rng.integers(4))
    result = []
    for image in images:
        if flip and mirror_columns:
            image = image[:, ::-1]
        if flip and mirror_rows:
            image = image[::-1]
        if rotate:
            image = np.rot90(image, quarters)
        result.append(np.ascontiguousarray(image))
    return tuple(result)


def _reflected(start: int, length: int, size: int) -> np.ndarray:
    """Indices [length] of positions start, start + 1, ... in an axis of `size` that is reflected without end."""
    period = max(2 * (size - 1), 1)
    positions = np.arange(start, start + length) % period
    return np.minimum(positions, period - positions)


_PREFETCHED_BATCHES = 4
_open_iterators = weakref.WeakSet()


def batches(
    source,
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
    prefetch: int = _PREFETCHED_BATCHES,
):
    """Yield this host's share of `steps` batches (None: without end), the first of which starts at `position`.

    Batch j holds the samples `position + j * batch` to `position + (j + 1) * batch - 1` of an endless stream; host h
    of n gets the h-th of n equal, contiguous parts. Each is a dict of numpy arrays:
    "input", "target": uint8 [batch / host_count, crop_px, crop_px, 3]; "position": int64 [batch / host_count].
    Every picture of a source is seen once per epoch, in an order drawn from (seed, epoch); crop, degradation,
    mirroring (`flip`) and quarter turns (`rotate`) are drawn from (seed, position).

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
        prefetch=prefetch,
    )
    _open_iterators.add(iterator)
    return iterator


def sample(source, seed: int, position: int, *, crop_px: int, flip: bool, rotate: bool):
    """Return (input, target), uint8 [crop_px, crop_px, 3] each, of the sample at `position`."""
    part, index = located(source, seed, position)
    # Philox is counter-based: keyed by (seed, position), neighbouring positions get unrelated numbers.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))
    return random_orientation(part.crop(index, crop_px, rng), rng, flip=flip, rotate=rotate)


def located(source, seed: int, position: int):
    """Return (part of the source that serves `position`, index of the picture in it)."""
    part, position = source.part_at(position)
    epoch, place = divmod(position, len(part))
    return part, int(_shuffled(len(part), seed, epoch)[place])


def sample_names(source, seed: int, positions) -> list[str]:
    """Return the names of the pictures at `positions`, for messages."""
    parts = (located(source, seed, int(position)) for position in positions)
    return [part.name(index) for part, index in parts]


@functools.lru_cache(maxsize=16)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _batches(read_sample, *, first, batch, local, crop_px, steps, prefetch):
    tensorflow = _tensorflow()
    failures = []

    def read(position):
        try:
            return read_sample(int(position))
        except Exception as error:
            failures.append(error)
            raise

    def mapped(number):
        position = first + number // local * batch + number % local
        pair = tensorflow.numpy_function(read, [position], (tensorflow.uint8, tensorflow.uint8), stateful=False)
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
        if failures:  # what went wrong in Python, instead of TensorFlow's account of it
            raise failures[0] from None
        raise


@atexit.register
def _close_iterators():
    """End TensorFlow's readers while Python still runs; afterwards they would wait for it, and it for them."""
    for iterator in list(_open_iterators):
        with contextlib.suppress(ValueError):  # another thread is in it
            iterator.close()


@functools.cache
def _tensorflow():
    """Import TensorFlow (slow, so only when batches are read) and keep it off the accelerators, which are JAX's."""
    # Without these it prints notes on its build; it computes nothing here that oneDNN would speed up.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow

    for kind in ("GPU", "TPU"):
        tensorflow.config.set_visible_devices([], kind)
    return tensorflow
