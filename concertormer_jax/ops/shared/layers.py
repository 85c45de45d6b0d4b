"""What several platforms run beside the attention: the gated MLP on a whole map, and TLC's windows as one batch."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from concertormer_jax.ops.reference import MLPWeights, window_starts
from concertormer_jax.ops.shared.projection import project
from concertormer_jax.ops.shared.taps import depthwise_3x3


def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
    depthwise: Callable[[Array, Array], Array] = depthwise_3x3,
) -> Float[Array, "b H W C"]:
    """`ops.layers.gated_mlp`, each step on the whole map. depthwise: of features and kernel."""
    to_u, to_z = jnp.split(weights.to_uz, 2, axis=1)  # of one product, the halves would be cut out as copies
    u = depthwise(project(x, to_u), weights.depthwise)
    return residual + project(gated(u, project(x, to_z), attended, weights), weights.to_output)


def gated(
    u: Float[Array, "b H W h"],
    z: Float[Array, "b H W h"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
) -> Float[Array, "b H W h"]:
    """(attended to_hidden + u) * z."""
    return (u if attended is None else project(attended, weights.to_hidden) + u) * z


def rows_or_zeros(maps: Float[Array, "b H W C"], numbers: Int[Array, " h"]) -> Float[Array, "b h W C"]:
    """The rows `numbers` of the maps, and zeros for numbers that no row has."""
    inside = (numbers >= 0) & (numbers < maps.shape[1])
    taken = maps.at[:, jnp.clip(numbers, 0, maps.shape[1] - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[:, None, None], taken, 0)


def on_windows(
    function: Callable[..., Array], features: Sequence[Float[Array, "b H W _"]], window: int
) -> Float[Array, "b H W D"]:
    """`ops.layers.on_windows` with the windows of all pictures as one batch, with which an accelerator is faster."""
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
