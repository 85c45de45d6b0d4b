"""Splitting and merging of blocks on a TPU, which cuts them in one pass out of a map extended by its own border.

Gathers, which `ops.blocks` takes, are slow there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, partition, permute, shift_of, unpartition


def split_blocks(
    grid: Grid, features: Float[Array, "b H W C"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b p n C"]:
    """`ops.blocks.split_blocks`."""
    if shifted is False:
        return partition(features, grid.size)
    return permute(_cut, _join, grid, features, jnp.asarray(shifted))


def merge_blocks(
    grid: Grid, blocks: Float[Array, "b p n C"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b H W C"]:
    """`ops.blocks.merge_blocks`."""
    if shifted is False:
        return unpartition(blocks, grid)
    return permute(_join, _cut, grid, blocks, jnp.asarray(shifted))


def _cut(grid, features, shifted):
    border = grid.size // 2
    shape = features.shape
    for axis in (1, 2):
        features = jnp.concatenate([features, jax.lax.slice_in_dim(features, 0, border, axis=axis)], axis=axis)
    start = shift_of(grid, shifted)
    blocks = partition(jax.lax.dynamic_slice(features, [0, start, start, 0], shape), grid.size)
    # All projections read them in one layout; without the barrier some are given a copy in another form of the same.
    return jax.lax.optimization_barrier(blocks)


def _join(grid, blocks, shifted):
    border = grid.size // 2
    features = unpartition(blocks, grid)
    shape = features.shape
    for axis, size in ((1, shape[1]), (2, shape[2])):
        end = jax.lax.slice_in_dim(features, size - border, size, axis=axis)
        features = jnp.concatenate([end, features], axis=axis)
    start = border - shift_of(grid, shifted)
    return jax.lax.dynamic_slice(features, [0, start, start, 0], shape)
