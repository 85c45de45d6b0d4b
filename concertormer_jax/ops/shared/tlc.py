"""Test-time local converter with the windows of all images as one batch, and what its other forms share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import window_starts


def on_windows(
    function: Callable[..., Array], features: Sequence[Float[Array, "b H W _"]], window: int
) -> Float[Array, "b H W D"]:
    """`ops.tlc.on_windows`; an accelerator is faster with one large batch."""
    batch, height, width, _ = features[0].shape
    rows, columns = len(window_starts(height, window)), len(window_starts(width, window))
    windows = [_cut(_cut(array, 1, window), 3, window) for array in features]  # [b, rows, h, columns, w, C]
    stacked = [jnp.moveaxis(array, 3, 2).reshape(-1, *array.shape[2:3], *array.shape[4:]) for array in windows]
    result = function(*stacked)
    result = result.reshape(batch, rows, columns, *result.shape[1:])
    return _join(_join(jnp.moveaxis(result, 2, 3), 3, width), 1, height)


def _cut(features, axis, window):
    """Windows along `axis`, stacked as a new axis in front of it."""
    starts = window_starts(features.shape[axis], window)
    window = min(features.shape[axis], window)
    return jnp.stack([jax.lax.slice_in_dim(features, s, s + window, axis=axis) for s in starts], axis=axis)


def _join(windows, axis, size):
    """The inverse of `_cut`; where windows overlap, their mean."""
    window = windows.shape[axis + 1]
    shape = (*windows.shape[:axis], size, *windows.shape[axis + 2 :])
    total = jnp.zeros(shape, windows.dtype)
    before = (slice(None),) * axis
    for index, start in enumerate(window_starts(size, window)):
        total = total.at[(*before, slice(start, start + window))].add(jnp.take(windows, index, axis=axis))
    weight = share(size, window).reshape((size,) + (1,) * (total.ndim - axis - 1))
    return total * weight.astype(total.dtype)


def share(size: int, window: int) -> Float[np.ndarray, " size"]:
    """1 / how many windows cover each pixel of an axis."""
    count = np.zeros(size, np.float32)
    for start in window_starts(size, window):
        count[start : start + window] += 1
    return 1 / count
