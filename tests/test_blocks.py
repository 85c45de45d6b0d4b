"""Blocks of a feature map: cutting, joining, shifting, and which pairs of a shifted block the border separates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops import blocks as windows


@pytest.fixture
def features():
    return jax.random.normal(jax.random.key(0), (2, 6, 9, 4))


def test_merge_undoes_partition(features):
    np.testing.assert_array_equal(windows.merge(windows.partition(features, 3), 3, 6, 9), features)


def test_partition_is_row_major_outside_and_inside(features):
    blocks = windows.partition(features, 3)
    assert blocks.shape == (2, 9, 6, 4)
    for row in range(2):
        for column in range(3):
            for position in range(9):
                pixel = features[:, 3 * row + position // 3, 3 * column + position % 3]
                np.testing.assert_array_equal(blocks[:, position, 3 * row + column], pixel)


@pytest.mark.parametrize("size", [2, 9])
def test_partition_refuses_a_size_that_does_not_fit(features, size):
    with pytest.raises(ValueError, match=f"6x9 feature map cannot be cut into blocks of size={size}"):
        windows.partition(features, size)


GRID = windows.Grid(2, 3, 4)  # of the map of `pixels`: 8x12
CUTS = (windows.cut, windows.cut_by_index, windows.cut_from_extended)
JOINS = (windows.join, windows.join_by_index, windows.join_in_extended)


@pytest.fixture
def pixels():
    return jax.random.normal(jax.random.key(1), (2, 8, 12, 3))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_blocks_are_cut_where_they_are_moved_by_half_their_size(cut, traced, pixels):
    run = jax.jit(partial(cut, GRID)) if traced else partial(cut, GRID)
    np.testing.assert_array_equal(run(pixels, False), windows.partition(pixels, 4))
    rolled = np.roll(pixels, (-2, -2), axis=(1, 2))
    np.testing.assert_array_equal(run(pixels, True), windows.partition(jnp.asarray(rolled), 4))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("join", JOINS)
def test_joining_undoes_cutting(join, shifted, pixels):
    np.testing.assert_array_equal(join(GRID, windows.cut(GRID, pixels, shifted), shifted), pixels)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_two_ways_are_one(shifted, pixels):
    blocks = windows.cut_by_index(GRID, pixels, shifted)
    np.testing.assert_array_equal(blocks, windows.cut_from_extended(GRID, pixels, shifted))
    odd = windows.Grid(2, 3, 3)  # half a block is one pixel of three
    np.testing.assert_array_equal(
        windows.cut_by_index(odd, pixels[:, :6, :9], shifted),
        windows.cut_from_extended(odd, pixels[:, :6, :9], shifted),
    )
    other = jax.random.normal(jax.random.key(2), blocks.shape)
    np.testing.assert_array_equal(
        windows.join_by_index(GRID, other, shifted), windows.join_in_extended(GRID, other, shifted)
    )


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("ours", "plain", "shape"),
    [
        (windows.cut, windows.cut_by_index, (2, 8, 12, 3)),
        (windows.cut, windows.cut_from_extended, (2, 8, 12, 3)),
        (windows.join, windows.join_by_index, (2, 16, 6, 3)),
        (windows.join, windows.join_in_extended, (2, 16, 6, 3)),
    ],
)
def test_derivatives_are_those_of_the_plain_functions(ours, plain, shape, shifted, traced):
    features, *_ = jax.random.normal(jax.random.key(3), (1, *shape))

    def gradient(function):
        def pull_back(features, shifted):
            result, backward = jax.vjp(lambda features: function(GRID, features, shifted), features)
            return backward(jnp.arange(result.size, dtype=jnp.float32).reshape(result.shape))

        return jax.jit(pull_back)(features, shifted) if traced else pull_back(features, shifted)

    np.testing.assert_array_equal(*map(gradient, (ours, plain)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_the_border_separates_pixels_that_are_neighbours_only_after_the_shift(rows, columns):
    size = 4
    crosses = np.asarray(windows.crosses_border(rows, columns, size))
    assert crosses.shape == (rows, columns, size**2, size**2)
    # Where each position of a shifted block comes from: [rows, columns, size * size, 2].
    places = np.stack(np.meshgrid(np.arange(rows * size), np.arange(columns * size), indexing="ij"), axis=-1)
    blocks = windows.cut(windows.Grid(rows, columns, size), jnp.asarray(places)[None], True)
    origin = np.asarray(blocks)[0].swapaxes(0, 1).reshape(rows, columns, size**2, 2)
    inside = np.stack(np.divmod(np.arange(size**2), size), axis=-1)
    distance_in_image = origin[..., :, None, :] - origin[..., None, :, :]
    distance_in_block = inside[:, None] - inside[None]
    np.testing.assert_array_equal(crosses, (distance_in_image != distance_in_block).any(axis=-1))
    blocks = jnp.arange(rows * columns).reshape(1, -1)
    in_rows = windows.crosses_border_in_rows(rows, columns, size, blocks)
    np.testing.assert_array_equal(in_rows, crosses.reshape(1, rows * columns, size**4))
