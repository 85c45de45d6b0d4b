"""Square blocks of a feature map: splitting, merging, and the half-block shift.

Blocks lie as [b, p, n, C], position p in a block before block n. Attention across blocks contracts them as they lie;
attention inside blocks exchanges the two axes first.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


class Grid(NamedTuple):
    """The blocks of a map: their number down and to the right, and their side in pixels."""

    rows: int
    columns: int
    size: int


def partition(features: Shaped[Array, "b H W C"], size: int) -> Shaped[Array, "b p n C"]:
    """Split a map into blocks of size x size pixels, row by row outside and inside, without a shift.

    Raises ValueError when `size` does not divide H and W.
    """
    batch, height, width, channels = features.shape
    if height % size or width % size:
        raise ValueError(f"a {height}x{width} feature map cannot be split into blocks of size={size}")
    blocks = features.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(batch, size * size, -1, channels)


def unpartition(blocks: Shaped[Array, "b p n C"], grid: Grid) -> Shaped[Array, "b H W C"]:
    """The inverse of `partition`."""
    rows, columns, size = grid
    batch, _, _, channels = blocks.shape
    features = blocks.reshape(batch, size, size, rows, columns, channels).transpose(0, 3, 1, 4, 2, 5)
    return features.reshape(batch, rows * size, columns * size, channels)


def split_blocks(
    grid: Grid, features: Float[Array, "b H W C"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b p n C"]:
    """`partition`; where `shifted` is true, into blocks that are moved down and right by half their size, circularly.

    `shifted` may be traced, as the blocks of a stage are scanned and every other one is shifted. The pixels are
    gathered, which a CPU and a GPU do in one pass with what is before and after.
    """
    if shifted is False:
        return partition(features, grid.size)
    return permute(_gather_blocks, _gather_map, grid, features, jnp.asarray(shifted))


def merge_blocks(
    grid: Grid, blocks: Float[Array, "b p n C"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b H W C"]:
    """The inverse of `split_blocks`."""
    if shifted is False:
        return unpartition(blocks, grid)
    return permute(_gather_map, _gather_blocks, grid, blocks, jnp.asarray(shifted))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def permute(
    forward: Callable[..., Array],
    inverse: Callable[..., Array],
    grid: Grid,
    features: Float[Array, "b _ _ C"],
    shifted: Bool[Array, ""],
) -> Float[Array, "b _ _ C"]:
    """forward(grid, features, shifted), which moves pixels; its derivative is its `inverse`."""
    return forward(grid, features, shifted)


permute.defvjp(
    lambda forward, inverse, grid, features, shifted: (permute(forward, inverse, grid, features, shifted), shifted),
    lambda forward, inverse, grid, shifted, gradient: (permute(inverse, forward, grid, gradient, shifted), None),
)


def shift_of(grid: Grid, shifted: Bool[Array, ""]) -> Int[Array, ""]:
    """By how many pixels the blocks are moved."""
    return jnp.where(shifted, grid.size // 2, 0)


def _gather_blocks(grid, features, shifted):
    height, width = features.shape[1:3]
    rows, columns = (_sources(grid, size, shifted) for size in (height, width))
    sources = rows[:, None] * width + columns
    return _pixels(features, partition(sources[None, :, :, None], grid.size)[0, ..., 0])


def _gather_map(grid, blocks, shifted):
    height, width = grid.rows * grid.size, grid.columns * grid.size
    (row, y), (column, x) = (_places(grid, size, shifted) for size in (height, width))
    positions = y[:, None] * grid.size + x
    return _pixels(blocks, positions * (grid.rows * grid.columns) + row[:, None] * grid.columns + column)


# Both cases are computed by NumPy: for XLA a remainder of numbers with signs is six operations.


def _sources(grid, size, shifted):
    """For the pixels of all blocks along an axis of `size` pixels, in order, where they come from."""
    return jax.lax.select(shifted, *(np.roll(np.arange(size, dtype=np.int32), -by) for by in (grid.size // 2, 0)))


def _places(grid, size, shifted):
    """For the pixels along an axis of `size` pixels, the number of their block and their place in it."""
    blocks = np.divmod(np.arange(size, dtype=np.int32), grid.size)
    return [jax.lax.select(shifted, np.roll(part, grid.size // 2), part) for part in blocks]


def _pixels(features, sources):
    """[b, _, _, C] to [b, *sources.shape, C], `sources` being numbers of pixels in row-major order."""
    pixels = features.reshape(features.shape[0], -1, features.shape[-1])
    return pixels.at[:, sources].get(mode="promise_in_bounds")


def crosses_border(grid: Grid) -> Bool[Array, "n p p"]:
    """Which pairs of positions in a shifted block lie on two sides of the map's border.

    After a shift by half a block, only the last row and the last column of blocks hold such pairs.
    """
    across_bottom, across_right = across(grid.size)
    last_row = jnp.asarray(np.arange(grid.rows) == grid.rows - 1)[:, None, None, None]
    last_column = jnp.asarray(np.arange(grid.columns) == grid.columns - 1)[:, None, None]
    crosses = (last_row & across_bottom) | (last_column & across_right)
    return crosses.reshape(grid.rows * grid.columns, *across_bottom.shape)


def across(size: int) -> tuple[Bool[np.ndarray, "p p"], Bool[np.ndarray, "p p"]]:
    """Which pairs of positions lie on two sides of a bottom border, and of a right one, in the middle of their block.

    size: side of a block in pixels; p = size**2.
    """
    second_half = np.arange(size) >= size // 2
    row, column = np.divmod(np.arange(size * size), size)
    return tuple(second_half[place][:, None] != second_half[place] for place in (row, column))
