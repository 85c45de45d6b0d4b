"""The gated-dconv MLP of a block (paper, section 3.3): projections around a gate that holds a depthwise convolution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.ops.convolution import depthwise_3x3, depthwise_3x3_valid
from concertormer_jax.ops.projection import project

STRIP_ROWS = 16  # at most: what is computed of as many rows stays in the cache of a CPU at every level of the network


class Weights(NamedTuple):
    """Parameters of the MLP from C to C channels with h hidden ones, in the type of the computation."""

    to_uz: jax.Array  # [C, 2 h], u first
    depthwise: jax.Array  # [3, 3, h]
    to_hidden: jax.Array | None  # [h', h], for what attention gives; None without attention
    to_output: jax.Array  # [h, C]


@jax.custom_vjp
def gated_mlp(x: jax.Array, attended: jax.Array | None, weights: Weights) -> jax.Array:
    """((attended to_hidden + depthwise(u)) * z) to_output with u, z = x to_uz.

    x: [B, H, W, C] normalised features; attended: [B, H, W, h'], or None for the MLP alone. Returns [B, H, W, C].
    """
    return jax.lax.platform_dependent(x, attended, weights, cpu=in_strips, default=whole)


def whole(x: jax.Array, attended: jax.Array | None, weights: Weights) -> jax.Array:
    """`gated_mlp` step by step, each on the whole map."""
    u, z = jnp.split(project(x, weights.to_uz), 2, axis=-1)
    u = depthwise_3x3(u, weights.depthwise)
    return project(_gated(u, z, attended, weights), weights.to_output)


def in_strips(x: jax.Array, attended: jax.Array | None, weights: Weights) -> jax.Array:
    """`gated_mlp` of some rows after the others, so that their hidden channels never leave the cache of a CPU."""
    rows = next(rows for rows in range(STRIP_ROWS, 0, -1) if x.shape[1] % rows == 0)
    to_u, to_z = jnp.split(weights.to_uz, 2, axis=1)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))

    def strip(top):
        here = jax.lax.dynamic_slice_in_dim(padded, top, rows + 2, axis=1)
        u = depthwise_3x3_valid(jnp.pad(here @ to_u, ((0, 0), (0, 0), (1, 1), (0, 0))), weights.depthwise)
        z = here[:, 1:-1] @ to_z
        there = None if attended is None else jax.lax.dynamic_slice_in_dim(attended, top, rows, axis=1)
        return _gated(u, z, there, weights) @ weights.to_output

    strips = jax.lax.map(strip, jnp.arange(0, x.shape[1], rows))
    return jnp.moveaxis(strips, 0, 1).reshape(x.shape[:3] + strips.shape[-1:])


def _gated(u, z, attended, weights):
    return (u if attended is None else project(attended, weights.to_hidden) + u) * z


gated_mlp.defvjp(lambda *given: jax.vjp(whole, *given), lambda derivative, gradient: derivative(gradient))
