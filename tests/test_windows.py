"""Blocks of a feature map: cutting, joining, shifting, and which pairs of a shifted block the border separates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops import windows


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


def test_roll_where(features):
    rolled = windows.roll_where(jnp.array(True), features, -2)
    np.testing.assert_array_equal(rolled[:, 0, 1], features[:, 2, 3])
    np.testing.assert_array_equal(windows.roll_where(True, rolled, 2), features)
    np.testing.assert_array_equal(windows.roll_where(jnp.array(False), features, -2), features)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_the_border_separates_pixels_that_are_neighbours_only_after_the_shift(rows, columns):
    size = 4
    crosses = np.asarray(windows.crosses_border(rows, columns, size))
    assert crosses.shape == (rows, columns, size**2, size**2)
    # Where each position of a shifted block comes from: [rows, columns, size * size, 2].
    places = np.stack(np.meshgrid(np.arange(rows * size), np.arange(columns * size), indexing="ij"), axis=-1)
    shifted = windows.roll_where(True, jnp.asarray(places)[None], -size // 2)
    origin = np.asarray(windows.partition(shifted, size))[0].swapaxes(0, 1).reshape(rows, columns, size**2, 2)
    inside = np.stack(np.divmod(np.arange(size**2), size), axis=-1)
    distance_in_image = origin[..., :, None, :] - origin[..., None, :, :]
    distance_in_block = inside[:, None] - inside[None]
    np.testing.assert_array_equal(crosses, (distance_in_image != distance_in_block).any(axis=-1))
