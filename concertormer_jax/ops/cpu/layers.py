"""What a CPU runs beside the attention: 3x3 convolutions, the gated-dconv MLP and the test-time local converter.

The MLP is computed strip by strip and the converter window by window, so that their features stay in the cache.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.cpu.workarounds import materialize
from concertormer_jax.ops.reference import MLPWeights, window_starts
from concertormer_jax.ops.shared import layers, taps
from concertormer_jax.ops.shared.layers import gated, project, rows_or_zeros, share
from concertormer_jax.ops.shared.taps import depthwise_3x3_valid

depthwise_3x3 = partial(taps.depthwise_3x3, materialize=materialize)
STRIP_ROWS = 16  # at most, so that the features of a strip stay in the cache at every level of the network

on_whole_map = partial(layers.gated_mlp, depthwise=depthwise_3x3)


def convolve_to_few(features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "b H W D"]:
    """One projection for all nine taps, whose results are shifted and added.

    On a CPU, the derivative by the kernel of XLA's own convolution is slow.
    """
    to_taps = kernel.transpose(2, 0, 1, 3)  # [C, down, right, D]
    results = project(features, to_taps.reshape(len(to_taps), -1))
    results = taps.padded_by_one(results)
    results = results.reshape(*results.shape[:3], 3, 3, -1)
    shifted = (neighbour[:, :, :, down, right] for down, right, neighbour in taps.neighbours(results))
    return reduce(jnp.add, shifted)


@jax.custom_vjp
def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
) -> Float[Array, "b H W C"]:
    """`ops.layers.gated_mlp` strip by strip of rows, so that the hidden channels of a strip never leave the cache."""
    height = x.shape[1]
    rows = next(rows for rows in range(STRIP_ROWS, 0, -1) if height % rows == 0)

    def add_to_strip(index, output):
        top = index * rows

        def here(features):
            return jax.lax.dynamic_slice_in_dim(features, top, rows, axis=1)

        with_border = rows_or_zeros(x, top + jnp.arange(-1, rows + 1))
        u, z = jnp.split(with_border @ weights.to_uz, 2, axis=-1)
        u = depthwise_3x3_valid(jnp.pad(u, ((0, 0), (0, 0), (1, 1), (0, 0))), weights.depthwise, materialize)
        hidden = gated(u, z[:, 1:-1], None if attended is None else here(attended), weights)
        return jax.lax.dynamic_update_slice_in_dim(output, here(output) + hidden @ weights.to_output, top, axis=1)

    return jax.lax.fori_loop(0, height // rows, add_to_strip, residual)


gated_mlp.defvjp(lambda *given: jax.vjp(on_whole_map, *given), lambda derivative, gradient: derivative(gradient))


def on_windows(
    function: Callable[..., Array], features: Sequence[Float[Array, "b H W _"]], window: int
) -> Float[Array, "b H W D"]:
    """`ops.layers.on_windows` in a loop over windows, each of all images."""
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
    weight = share(height, window)[:, None, None] * share(width, window)[:, None]
    return total * weight.astype(total.dtype)
