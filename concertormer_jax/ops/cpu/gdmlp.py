"""The gated-dconv MLP on a CPU: in strips of rows, and for training on the whole map."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.cpu.convolution import depthwise_3x3
from concertormer_jax.ops.cpu.workarounds import materialize
from concertormer_jax.ops.reference import MLPWeights
from concertormer_jax.ops.shared import gdmlp
from concertormer_jax.ops.shared.taps import depthwise_3x3_valid

STRIP_ROWS = 16  # at most: what is computed of as many rows stays in the cache at every level of the network

on_whole_map = partial(gdmlp.gated_mlp, depthwise=depthwise_3x3)


@jax.custom_vjp
def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
) -> Float[Array, "b H W C"]:
    """`ops.gdmlp.gated_mlp` of some rows after the others, so that their hidden channels never leave the cache."""
    height = x.shape[1]
    rows = next(rows for rows in range(STRIP_ROWS, 0, -1) if height % rows == 0)

    def add_to_strip(index, output):
        top = index * rows

        def here(features):
            return jax.lax.dynamic_slice_in_dim(features, top, rows, axis=1)

        u, z = jnp.split(_with_border(x, top, rows) @ weights.to_uz, 2, axis=-1)
        u = depthwise_3x3_valid(jnp.pad(u, ((0, 0), (0, 0), (1, 1), (0, 0))), weights.depthwise, materialize)
        hidden = gdmlp.gated(u, z[:, 1:-1], None if attended is None else here(attended), weights)
        return jax.lax.dynamic_update_slice_in_dim(output, here(output) + hidden @ weights.to_output, top, axis=1)

    return jax.lax.fori_loop(0, height // rows, add_to_strip, residual)


def _with_border(features, top, rows):
    """Rows `top - 1` to `top + rows`, zero outside the map."""
    numbers = top + jnp.arange(-1, rows + 1)
    inside = (numbers >= 0) & (numbers < features.shape[1])
    taken = features.at[:, jnp.clip(numbers, 0, features.shape[1] - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[:, None, None], taken, 0)


gated_mlp.defvjp(lambda *given: jax.vjp(on_whole_map, *given), lambda derivative, gradient: derivative(gradient))
