"""Blocks of a feature map: splitting, merging, shifting, and which pairs of a shifted block the border separates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops import blocks
from concertormer_jax.ops.blocks import Grid, partition, unpartition
from concertormer_jax.ops.tpu import concerto as tpu

both_forms = pytest.mark.parametrize("form", [blocks, tpu], ids=["gathered", "tpu"])


@pytest.fixture
def features():
    return jax.random.normal(jax.random.key(0), (2, 6, 9, 4))


def test_partition_is_row_major_outside_and_inside(features):
    cut = partition(features, 3)
    assert cut.shape == (2, 9, 6, 4)
    for row in range(2):
        for column in range(3):
            for position in range(9):
                pixel = features[:, 3 * row + position // 3, 3 * column + position % 3]
                np.testing.assert_array_equal(cut[:, position, 3 * row + column], pixel)
    np.testing.assert_array_equal(unpartition(cut, Grid(2, 3, 3)), features)


@pytest.mark.parametrize("size", [2, 9])
def test_partition_refuses_a_size_that_does_not_fit(features, size):
    with pytest.raises(ValueError, match=f"6x9 feature map cannot be split into blocks of size={size}"):
        partition(features, size)


@both_forms
@pytest.mark.parametrize("size", [3, 4])  # half a block is one pixel of three
@pytest.mark.parametrize("shifted", [False, True, jnp.array(False), jnp.array(True)], ids=str)
def test_blocks_are_those_of_a_map_that_is_moved_by_half_their_size(form, shifted, size):
    grid = Grid(2, 3, size)
    pixels = jax.random.normal(jax.random.key(1), (2, 2 * size, 3 * size, 3))
    cut, merge_back = jax.vjp(lambda pixels: form.split_blocks(grid, pixels, shifted), pixels)
    moved = jnp.roll(pixels, -(size // 2), axis=(1, 2)) if shifted else pixels
    np.testing.assert_array_equal(cut, partition(moved, size))
    # The derivative of a permutation is its inverse.
    (merged,) = merge_back(cut)
    np.testing.assert_array_equal(merged, pixels)
    merged, split_again = jax.vjp(lambda cut: form.merge_blocks(grid, cut, shifted), cut)
    np.testing.assert_array_equal(merged, pixels)
    np.testing.assert_array_equal(split_again(merged)[0], cut)


@both_forms
def test_a_traced_shift_serves_both(form):
    grid, pixels = Grid(2, 3, 4), jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    split = jax.jit(partial(form.split_blocks, grid))
    for shifted in (False, True):
        np.testing.assert_array_equal(split(pixels, shifted), form.split_blocks(grid, pixels, shifted))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_the_border_separates_pixels_that_are_neighbours_only_after_the_shift(rows, columns):
    size = 4
    grid = Grid(rows, columns, size)
    # Where each position of a shifted block comes from: [n, size * size, 2].
    places = np.stack(np.meshgrid(np.arange(rows * size), np.arange(columns * size), indexing="ij"), axis=-1)
    origin = np.asarray(blocks.split_blocks(grid, jnp.asarray(places, jnp.float32)[None], True))[0].swapaxes(0, 1)
    inside = np.stack(np.divmod(np.arange(size**2), size), axis=-1)
    distance_in_image = origin[..., :, None, :] - origin[..., None, :, :]
    distance_in_block = inside[:, None] - inside[None]
    np.testing.assert_array_equal(blocks.crosses_border(grid), (distance_in_image != distance_in_block).any(axis=-1))
