"""Test-time local converter: a global operation computed on overlapping windows of about the training size."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.ops.dispatch import on_platform


def window_starts(size: int, window: int) -> list[int]:
    """Where the windows begin along an axis of `size` pixels; the last one ends at the border.

    The windows are `min(size, window)` long, as few as cover the axis, and evenly spread.
    """
    window = min(size, window)
    count = -(-size // window)
    step = window if count == 1 else -(-(size - window) // (count - 1))
    return [min(i * step, size - window) for i in range(count)]


def _cut(features: jax.Array, axis: int, window: int) -> jax.Array:
    """Windows along `axis`, stacked as a new axis in front of it."""
    starts = window_starts(features.shape[axis], window)
    window = min(features.shape[axis], window)
    return jnp.stack([jax.lax.slice_in_dim(features, s, s + window, axis=axis) for s in starts], axis=axis)


def _join(windows: jax.Array, axis: int, size: int) -> jax.Array:
    """The inverse of `_cut`; where windows overlap, their mean."""
    window = windows.shape[axis + 1]
    starts = window_starts(size, window)
    shape = (*windows.shape[:axis], size, *windows.shape[axis + 2 :])
    total = jnp.zeros(shape, windows.dtype)
    before = (slice(None),) * axis
    for index, start in enumerate(starts):
        total = total.at[(*before, slice(start, start + window))].add(jnp.take(windows, index, axis=axis))
    share = _share(size, window).reshape((size,) + (1,) * (total.ndim - axis - 1))
    return total * share.astype(total.dtype)


def on_windows(function: Callable, features: Sequence[jax.Array], window: int) -> jax.Array:
    """Apply `function` to windows of feature maps and average its results where the windows overlap.

    An accelerator takes the windows of all images as one batch; a CPU takes one after the other, which is faster there
    and needs a fraction of the memory.
    features: arrays [B, H, W, C], cut alike; `function` takes as many arrays [B', h, w, C] and returns [B', h, w, D],
    with h = min(H, window) and w = min(W, window). Returns [B, H, W, D].
    """

    def at_once(*features):
        return windows_at_once(function, features, window)

    def in_turn(*features):
        return windows_in_turn(function, features, window)

    return on_platform(*features, cpu=in_turn, default=at_once)


def windows_at_once(function: Callable, features: Sequence[jax.Array], window: int) -> jax.Array:
    """`on_windows` with the windows of all images as one batch."""
    batch, height, width, _ = features[0].shape
    rows, columns = len(window_starts(height, window)), len(window_starts(width, window))
    cut = [_cut(_cut(array, 1, window), 3, window) for array in features]  # [B, rows, h, columns, w, C]
    stacked = [jnp.moveaxis(array, 3, 2).reshape(-1, *array.shape[2:3], *array.shape[4:]) for array in cut]
    result = function(*stacked)
    result = result.reshape(batch, rows, columns, *result.shape[1:])
    return _join(_join(jnp.moveaxis(result, 2, 3), 3, width), 1, height)


def windows_in_turn(function: Callable, features: Sequence[jax.Array], window: int) -> jax.Array:
    """`on_windows` in a loop over windows, each of all images."""
    batch, height, width, _ = features[0].shape
    size = (batch, min(height, window), min(width, window))
    corners = jnp.array([(y, x) for y in window_starts(height, window) for x in window_starts(width, window)])

    def cut(array, index):
        return jax.lax.dynamic_slice(array, (0, *corners[index], 0), (*size, array.shape[-1]))

    def apply(index):
        return function(*(cut(array, index) for array in features))

    def add(index, total):
        return jax.lax.dynamic_update_slice(total, cut(total, index) + apply(index), (0, *corners[index], 0))

    one = jax.eval_shape(apply, 0)
    total = jax.lax.fori_loop(0, len(corners), add, jnp.zeros((batch, height, width, one.shape[-1]), one.dtype))
    share = _share(height, window)[:, None, None] * _share(width, window)[:, None]
    return total * share.astype(total.dtype)


def _share(size, window):
    """1 / how many windows cover each pixel of an axis."""
    count = np.zeros(size, np.float32)
    for start in window_starts(size, window):
        count[start : start + window] += 1
    return 1 / count
