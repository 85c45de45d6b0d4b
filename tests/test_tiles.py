"""Tiles cover every pixel with weights that sum to one, leave no seam, and come in few sizes."""

import numpy as np
import pytest

from concertormer_jax.inference import tiles
from concertormer_jax.inference.tiles import fixed_axis, tiled_axis, whole_axis


def restore_tiled(apply, image, tile, overlap, multiple=64):
    """Every tile of the picture, given to `apply` and blended."""
    rows, columns = (fixed_axis(length, tile, overlap, multiple) for length in image.shape[:2])
    blended = np.zeros(image.shape, np.float32)
    for top, row_weights in zip(rows.starts, rows.weights, strict=True):
        for left, column_weights in zip(columns.starts, columns.weights, strict=True):
            restored = apply(tiles.cut(image, top, left, rows.size, columns.size))
            tiles.add(blended, restored, top, left, row_weights, column_weights)
    return blended


@pytest.mark.parametrize("overlap", [64, 128])
@pytest.mark.parametrize("length", range(64, 1600, 64))
def test_weights_sum_to_one_and_neighbours_overlap(length, overlap):
    axis = tiled_axis(length, 256, overlap)
    total = np.zeros(length)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert len(weight) == axis.size
        assert (weight >= 0).all()
        assert start % 64 == 0, "a tile has the same blocks as the whole picture"
        total[start : start + axis.size] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.size == length
    assert (np.diff(axis.starts) <= axis.size - overlap).all()
    assert axis.size == min(length, 256)
    assert len(axis.starts) == 1 or (len(axis.starts) - 2) * (256 - overlap) + 256 < length, "one fewer would have done"


def test_tiles_begin_where_the_blocks_of_the_network_do():
    for length in (2000, 3000):
        axis = fixed_axis(length, 896, 128, 128)
        assert axis.size == 896
        assert all(start % 128 == 0 for start in axis.starts)
        assert (np.diff(axis.starts) <= 896 - 128).all()


def test_every_tile_has_the_size_of_the_canvas():
    assert {fixed_axis(length, 384, 64).size for length in range(1, 2000, 13)} == {384}
    assert (whole_axis(37, 8).size, whole_axis(40, 8).size) == (40, 40)


def test_weights_are_smooth_and_vanish_where_a_tile_ends_inside_the_picture():
    axis = tiled_axis(1024, 256, 64)
    assert np.abs(np.diff(axis.weights, axis=1)).max() < 1.6 / 32  # a raised cosine over 32 rises by pi / 2 at most
    assert axis.weights[0, 0] == axis.weights[-1, -1] == 1
    assert (axis.weights[0, -16:] == 0).all()
    assert (axis.weights[1, :16] == 0).all()
    assert axis.weights[0, -17] > 0


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (37, 53), (64, 64), (65, 300), (300, 40), (201, 333)])
def test_the_identity_network_gives_the_picture_back(size):
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    shapes = set()

    def identity(tile):
        shapes.add(tile.shape)
        assert tile.dtype == np.float32
        return tile

    restored = restore_tiled(identity, image, 128, 64)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, image, atol=1e-6)
    assert shapes == {(128, 128, 3)}


@pytest.mark.parametrize("size", [(40, 70), (65, 200)])
def test_the_picture_is_padded_by_reflection(size):
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    cuts = []
    restore_tiled(lambda tile: cuts.append(tile) or tile, image, 128, 64)
    full = [max(128, length + -length % 64) - length for length in size]
    padded = np.pad(image, ((0, full[0]), (0, full[1]), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(cuts[-1], padded[-128:, -128:])


def test_a_constant_picture_has_no_seam():
    image = np.full((500, 700, 3), 0.7, np.float32)
    restored = restore_tiled(lambda tile: tile, image, 192, 64)
    np.testing.assert_allclose(restored, 0.7, atol=1e-6)


def test_what_a_network_does_at_the_border_of_a_tile_stays_out_of_the_picture():
    def spoilt(tile):
        spoilt = tile.copy()
        spoilt[:16] = spoilt[-16:] = spoilt[:, :16] = spoilt[:, -16:] = 9
        return spoilt

    restored = restore_tiled(spoilt, np.full((300, 400, 3), 0.7, np.float32), 128, 64)
    np.testing.assert_allclose(restored[16:-16, 16:-16], 0.7, atol=1e-6)


def test_tiles_that_disagree_are_blended_without_a_jump():
    answers = iter([0.0, 1.0])
    image = np.zeros((64, 192, 3), np.float32)
    restored = restore_tiled(lambda tile: np.full_like(tile, next(answers)), image, 128, 64)
    line = restored[0, :, 0]
    assert (line[:80] == 0).all()
    assert (line[112:] == 1).all()
    assert 0 < np.diff(line).max() < 0.06
    assert (np.diff(line) >= 0).all()


@pytest.mark.parametrize(
    ("length", "tile", "overlap"),
    [(0, 128, 64), (129, 128, 64), (64, 0, 64), (64, 100, 64), (64, 64, 64), (64, 128, 0)],
)
def test_impossible_tilings_are_refused(length, tile, overlap):
    with pytest.raises(ValueError, match=f"length={length}, tile={tile} and overlap={overlap}"):
        tiled_axis(length, tile, overlap)
