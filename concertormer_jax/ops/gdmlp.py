"""The gated-dconv MLP of a block (paper, section 3.3): projections around a gate that holds a depthwise convolution."""

import jax
import jax.numpy as jnp

from concertormer_jax.ops.convolution import depthwise_3x3, depthwise_3x3_valid, project
from concertormer_jax.ops.dispatch import on_platform
from concertormer_jax.ops.reference import MLPWeights

STRIP_ROWS = 16  # at most: what is computed of as many rows stays in the cache of a CPU at every level of the network


@jax.custom_vjp
def gated_mlp(residual: jax.Array, x: jax.Array, attended: jax.Array | None, weights: MLPWeights) -> jax.Array:
    """residual + ((attended to_hidden + depthwise(u)) * z) to_output with u, z = x to_uz.

    residual: [B, H, W, C]; x: likewise, the normalised features; attended: [B, H, W, h'], or None for the MLP alone.
    Returns [B, H, W, C].
    """
    return on_platform(residual, x, attended, weights, cpu=in_strips, default=whole)


def whole(residual: jax.Array, x: jax.Array, attended: jax.Array | None, weights: MLPWeights) -> jax.Array:
    """`gated_mlp` step by step, each on the whole map."""
    to_u, to_z = jnp.split(weights.to_uz, 2, axis=1)  # of one product, the halves would be cut out as copies
    u = depthwise_3x3(project(x, to_u), weights.depthwise)
    return residual + project(_gated(u, project(x, to_z), attended, weights), weights.to_output)


def in_strips(residual: jax.Array, x: jax.Array, attended: jax.Array | None, weights: MLPWeights) -> jax.Array:
    """`gated_mlp` of some rows after the others, so that their hidden channels never leave the cache of a CPU."""
    height = x.shape[1]
    rows = next(rows for rows in range(STRIP_ROWS, 0, -1) if height % rows == 0)

    def add_to_strip(index, output):
        top = index * rows

        def here(features):
            return jax.lax.dynamic_slice_in_dim(features, top, rows, axis=1)

        u, z = jnp.split(_with_border(x, top, rows) @ weights.to_uz, 2, axis=-1)
        u = depthwise_3x3_valid(jnp.pad(u, ((0, 0), (0, 0), (1, 1), (0, 0))), weights.depthwise)
        gated = _gated(u, z[:, 1:-1], None if attended is None else here(attended), weights)
        return jax.lax.dynamic_update_slice_in_dim(output, here(output) + gated @ weights.to_output, top, axis=1)

    return jax.lax.fori_loop(0, height // rows, add_to_strip, residual)


def _with_border(features, top, rows):
    """Rows `top - 1` to `top + rows`, zero outside the map."""
    numbers = top + jnp.arange(-1, rows + 1)
    inside = (numbers >= 0) & (numbers < features.shape[1])
    taken = features.at[:, jnp.clip(numbers, 0, features.shape[1] - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[:, None, None], taken, 0)


def _gated(u, z, attended, weights):
    return (u if attended is None else project(attended, weights.to_hidden) + u) * z


gated_mlp.defvjp(lambda *given: jax.vjp(whole, *given), lambda derivative, gradient: derivative(gradient))
