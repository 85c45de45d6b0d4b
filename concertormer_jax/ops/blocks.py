"""Square blocks of a feature map: cutting, joining, and the half-block shift.

Blocks lie as [B, positions, blocks, C], the position inside the block first: what attends across blocks contracts them
as they lie, and only the attention inside blocks exchanges the two axes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.ops.dispatch import on_platform


def partition(features: jax.Array, size: int) -> jax.Array:
    """Cut [B, H, W, C] into [B, size * size, (H / size) * (W / size), C], row-major outside and inside.

    Raises ValueError when `size` does not divide H and W.
    """
    batch, height, width, channels = features.shape
    if height % size or width % size:
        raise ValueError(f"a {height}x{width} feature map cannot be cut into blocks of size={size}")
    blocks = features.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(batch, size * size, -1, channels)


def merge(blocks: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `partition`: [B, size * size, blocks, C] to [B, height, width, C]."""
    batch, _, _, channels = blocks.shape
    features = blocks.reshape(batch, size, size, height // size, width // size, channels).transpose(0, 3, 1, 4, 2, 5)
    return features.reshape(batch, height, width, channels)


class Grid(NamedTuple):
    """The blocks of a map: their number down and to the right, and their side in pixels."""

    rows: int
    columns: int
    size: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def cut(grid: Grid, features: jax.Array, shifted: jax.Array | bool) -> jax.Array:
    """`partition` of [B, H, W, C]; where `shifted` is true, into blocks moved down and right by half their size.

    The map goes on at its other side. `shifted` may be traced: the blocks of a stage are scanned, and every other one
    is shifted.
    """
    if shifted is False:
        return partition(features, grid.size)
    return on_platform(
        features, jnp.asarray(shifted), tpu=partial(cut_from_extended, grid), default=partial(cut_by_index, grid)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def join(grid: Grid, blocks: jax.Array, shifted: jax.Array | bool) -> jax.Array:
    """The inverse of `cut`: [B, P, N, C] to [B, H, W, C]."""
    if shifted is False:
        return merge(blocks, grid.size, grid.rows * grid.size, grid.columns * grid.size)
    return on_platform(
        blocks, jnp.asarray(shifted), tpu=partial(join_in_extended, grid), default=partial(join_by_index, grid)
    )


# Each is a permutation, so the derivative of one is the other.
cut.defvjp(
    lambda grid, features, shifted: (cut(grid, features, shifted), shifted),
    lambda grid, shifted, gradient: (join(grid, gradient, shifted), None),
)
join.defvjp(
    lambda grid, blocks, shifted: (join(grid, blocks, shifted), shifted),
    lambda grid, shifted, gradient: (cut(grid, gradient, shifted), None),
)


# A CPU and a GPU gather pixels in one pass with what is before and after.


def cut_by_index(grid: Grid, features: jax.Array, shifted: jax.Array) -> jax.Array:
    """`cut` as a gather of pixels."""
    height, width = features.shape[1:3]
    rows, columns = (
        (jnp.arange(height) + _shift(grid, shifted)) % height,
        (jnp.arange(width) + _shift(grid, shifted)) % width,
    )
    sources = rows[:, None] * width + columns
    return _pixels(features, partition(sources[None, :, :, None], grid.size)[0, ..., 0])


def join_by_index(grid: Grid, blocks: jax.Array, shifted: jax.Array) -> jax.Array:
    """`join` as a gather of pixels."""
    height, width = grid.rows * grid.size, grid.columns * grid.size
    row, y = jnp.divmod((jnp.arange(height) - _shift(grid, shifted)) % height, grid.size)
    column, x = jnp.divmod((jnp.arange(width) - _shift(grid, shifted)) % width, grid.size)
    positions = y[:, None] * grid.size + x
    return _pixels(blocks, positions * (grid.rows * grid.columns) + row[:, None] * grid.columns + column)


def _shift(grid, shifted):
    return jnp.where(shifted, grid.size // 2, 0)


def _pixels(features, sources):
    """[B, _, _, C] to [B, *sources.shape, C], `sources` being numbers of pixels in row-major order."""
    pixels = features.reshape(features.shape[0], -1, features.shape[-1])
    return pixels.at[:, sources].get(mode="promise_in_bounds")


# Gathers are slow on a TPU, which cuts a map out of one that is extended by its own border in one pass.


def cut_from_extended(grid: Grid, features: jax.Array, shifted: jax.Array) -> jax.Array:
    """`cut` out of the map extended by its own border."""
    border = grid.size // 2
    shape = features.shape
    for axis in (1, 2):
        features = jnp.concatenate([features, jax.lax.slice_in_dim(features, 0, border, axis=axis)], axis=axis)
    start = _shift(grid, shifted)
    blocks = partition(jax.lax.dynamic_slice(features, [0, start, start, 0], shape), grid.size)
    # All projections read them in one layout; without the barrier some are given a copy in another form of the same.
    return jax.lax.optimization_barrier(blocks)


def join_in_extended(grid: Grid, blocks: jax.Array, shifted: jax.Array) -> jax.Array:
    """`join` as a cut out of the joined map, extended by its own border."""
    border = grid.size // 2
    features = merge(blocks, grid.size, grid.rows * grid.size, grid.columns * grid.size)
    shape = features.shape
    for axis, size in ((1, shape[1]), (2, shape[2])):
        end = jax.lax.slice_in_dim(features, size - border, size, axis=axis)
        features = jnp.concatenate([end, features], axis=axis)
    start = border - _shift(grid, shifted)
    return jax.lax.dynamic_slice(features, [0, start, start, 0], shape)


def crosses_border(rows: int, columns: int, size: int) -> jax.Array:
    """Which pairs of positions in a shifted block come from opposite sides of the image's border.

    After a roll by half a block only the last row and the last column of blocks hold such pairs.
    Returns booleans [rows, columns, size * size, size * size].
    """
    across_bottom, across_right = _across(size)
    last_row = (jnp.arange(rows) == rows - 1)[:, None, None, None]
    last_column = (jnp.arange(columns) == columns - 1)[:, None, None]
    return (last_row & across_bottom) | (last_column & across_right)


def crosses_border_in_rows(rows: int, columns: int, size: int, blocks: jax.Array) -> jax.Array:
    """`crosses_border` for the blocks with the numbers `blocks` [...], counted row by row. Returns [..., size**4]."""
    across_bottom, across_right = (pairs.reshape(-1) for pairs in _across(size))
    row, column = jnp.divmod(blocks[..., None], columns)
    return ((row == rows - 1) & across_bottom) | ((column == columns - 1) & across_right)


def _across(size):
    """Pairs of positions on the two sides of the bottom and of the right border, if it passes through their block.

    Twice [P, P].
    """
    second_half = np.arange(size) >= size // 2
    row, column = np.divmod(np.arange(size * size), size)
    return tuple(second_half[place][:, None] != second_half[place] for place in (row, column))
