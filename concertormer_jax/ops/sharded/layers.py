"""Convolutions, gated MLP and TLC of a picture whose rows lie on several devices.

`local` is the platform's form of the operation for maps that lie on one device.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import MLPWeights, window_starts
from concertormer_jax.ops.sharded.rows import RowShards, row_shards
from concertormer_jax.ops.shared import layers, taps
from concertormer_jax.ops.shared.layers import rows_or_zeros, share


def convolve_3x3(
    rows: RowShards, local: Callable[..., Array], features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 ..."]
) -> Float[Array, "b H W D"]:
    """A 3x3 convolution with zero padding."""
    return rows.convolve(lambda maps: local(maps, kernel), features)


def convolve(
    rows: RowShards,
    local: Callable[..., Array] | None,
    features: Float[Array, "b H W C"],
    kernel: Float[Array, "k k C D"],
    stride: int,
) -> Float[Array, "b _ _ D"]:
    """A convolution of 3x3 pixels with zero padding that keeps the size, or of whole cells. local: None for XLA's."""
    padding = "SAME" if stride == 1 else "VALID"

    def convolution(maps):
        if local is not None:
            return local(maps, kernel, stride)
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(maps, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return rows.convolve(convolution, features) if len(kernel) == 3 else convolution(features)


def gated_mlp(
    rows: RowShards,
    _: Callable,
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
) -> Float[Array, "b H W C"]:
    """`ops.layers.gated_mlp`."""
    return layers.gated_mlp(residual, x, attended, weights, partial(convolve_3x3, rows, taps.depthwise_3x3))


def on_windows(
    rows: RowShards,
    _: Callable,
    function: Callable[..., Array],
    features: Sequence[Float[Array, "b H W _"]],
    window: int,
) -> Float[Array, "b H W D"]:
    """`ops.layers.on_windows`: every device computes whole windows, one after another.

    In each step the devices send the rows of each window to the device that computes it, and then take their own rows
    of all results.
    """
    batch, height, width = features[0].shape[:3]
    all_rows = rows.rows_of_picture(height)
    if window >= max(all_rows, width):
        return function(*features)
    size = min(all_rows, window), min(width, window)
    corners = [(top, left) for top in window_starts(all_rows, window) for left in window_starts(width, window)]
    steps = -(-len(corners) // rows.devices)
    beyond = (-size[0], 0)  # a window above the picture, of zeros, for devices without one in the last step
    corners = jnp.array(corners + [beyond] * (steps * rows.devices - len(corners)))
    corners = corners.reshape(steps, rows.devices, 2)
    first = rows.first(height)
    sources = list({id(array): array for array in features}.values())  # keys may be the queries' features

    def window_of(array):
        """A function of the corners of all devices' windows to the window of this device [b, h, w, C]."""

        def cut(corner):  # the rows of a window that lie here, and zeros
            strip = jax.lax.dynamic_slice_in_dim(array, corner[1], size[1], axis=2)
            return rows_or_zeros(strip, corner[0] + jnp.arange(size[0]) - first)

        return lambda corners: jax.lax.psum_scatter(jax.vmap(cut)(corners), rows.axis)

    cuts = [window_of(array) for array in sources]

    def compute(step):
        windows = {id(array): cut(corners[step]) for array, cut in zip(sources, cuts, strict=True)}
        with row_shards(None):
            return function(*(windows[id(array)] for array in features))

    def add(step, total):
        results = jax.lax.all_gather(compute(step), rows.axis)

        def add_one(index, total):
            top, left = corners[step, index]
            here = rows_or_zeros(results[index], first + jnp.arange(height) - top)
            strip = jax.lax.dynamic_slice_in_dim(total, left, size[1], axis=2)
            return jax.lax.dynamic_update_slice_in_dim(total, strip + here, left, axis=2)

        return jax.lax.fori_loop(0, rows.devices, add_one, total)

    one = jax.eval_shape(compute, 0)
    total = jax.lax.fori_loop(0, steps, add, jnp.zeros((batch, height, width, one.shape[-1]), one.dtype))
    down = jnp.pad(jnp.asarray(share(all_rows, window)), (0, rows.devices * height - all_rows))
    down = jax.lax.dynamic_slice_in_dim(down, first, height)
    return total * (down[:, None, None] * share(width, window)[:, None]).astype(total.dtype)
