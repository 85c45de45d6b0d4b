"""Restoring a large picture in overlapping tiles of one fixed size, blended smoothly: positions, weights, the sum."""

import dataclasses
import math

import numpy as np

from concertormer_jax.ops.image import padded_size

# Tiles begin at multiples of this number of pixels, or of more if the network's `multiple` asks for it (`tile_grid`).
GRID_PX = 64


def tile_grid(multiple: int) -> int:
    """Return the pixels whose multiples the tiles' places and sizes are, for a network that pads to `multiple` pixels.

    A network lays blocks, at every scale, from the corner of what it sees. On this grid a tile has the same blocks as
    the whole picture, and needs no padding.
    """
    return math.lcm(GRID_PX, multiple)


@dataclasses.dataclass(frozen=True)
class TiledAxis:
    """Tiles along one axis: `size` pixels each, beginning at `starts`, with `weights` float32 [tiles, size].

    At every pixel of the axis the weights of the tiles that cover it sum to one.
    """

    size: int
    starts: tuple[int, ...]
    weights: np.ndarray


def tiled_axis(length: int, tile: int, overlap: int, grid: int = GRID_PX) -> TiledAxis:
    """Spread as few tiles as possible evenly over `length` pixels, neighbours sharing at least `overlap` pixels.

    Where a tile ends inside the picture, its outermost `overlap` / 4 pixels have no weight, since the network knows
    nothing of what lies beyond, and over the next `overlap` / 2 the weight rises as a raised cosine.
    An axis that is no longer than `tile` gets one tile of its own length, whatever that is.

    Raises ValueError unless all three are positive multiples of `grid` (a `length` up to `tile` any), overlap < tile.
    """
    multiples = (tile, overlap, max(length, tile))
    if any(value < 1 or value % grid for value in multiples) or length < 1 or overlap >= tile:
        raise ValueError(
            f"length={length}, tile={tile} and overlap={overlap} must be positive multiples of {grid}, "
            "overlap less than tile"
        )
    if length <= tile:
        return TiledAxis(length, (0,), np.ones((1, length), np.float32))
    gaps = -(-(length - tile) // (tile - overlap))
    starts = tuple(grid * round(index * (length - tile) / gaps / grid) for index in range(gaps + 1))
    offset = np.arange(overlap) + 0.5
    rise = np.sin(np.pi / 2 * np.clip(2 * offset / overlap - 0.5, 0, 1)) ** 2
    weights = np.ones((len(starts), tile))
    weights[1:, :overlap] *= rise
    weights[:-1, -overlap:] *= rise[::-1]
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + tile]
    return TiledAxis(tile, starts, weights.astype(np.float32))


def tiled_axes(
    height: int, width: int, tile: int, overlap: int, multiple: int = GRID_PX
) -> tuple[TiledAxis, TiledAxis]:
    """Return the tiles along both axes of a picture of height x width.

    multiple: that of the network. An axis longer than `tile` is padded to a multiple of `tile_grid(multiple)` pixels,
    another one to a multiple of `multiple`.
    """
    grid = tile_grid(multiple)
    padded = [padded_size(length, grid if length > tile else multiple) for length in (height, width)]
    return tuple(tiled_axis(length, tile, overlap, grid) for length in padded)


def restore_tiled(apply, image: np.ndarray, tile: int, overlap: int, multiple: int = GRID_PX) -> np.ndarray:
    """Restore a picture of any size tile by tile and blend the tiles in float32.

    apply: function of float32 [1, h, w, 3] that returns an array of the same shape. h and w are `tile` or, along an
        axis of the picture that is shorter, its length rounded up to `multiple`, so that few shapes occur.
    image: float32 [H, W, 3]; it is padded by reflection, as the network does (to its `multiple`).
    tile, overlap: pixels, as in `tiled_axis`. Returns float32 [H, W, 3].
    """
    height, width, _ = image.shape
    rows, columns = tiled_axes(height, width, tile, overlap, multiple)
    blended = np.zeros(image.shape, np.float32)
    for top, row_weights in zip(rows.starts, rows.weights, strict=True):
        for left, column_weights in zip(columns.starts, columns.weights, strict=True):
            cut = _window(_window(image, top, rows.size, axis=0), left, columns.size, axis=1)
            restored = np.asarray(apply(cut[None]))[0]
            inside = blended[top : top + rows.size, left : left + columns.size]
            shown_rows, shown_columns = inside.shape[:2]
            weights = row_weights[:shown_rows, None] * column_weights[:shown_columns]
            inside += restored[:shown_rows, :shown_columns] * weights[:, :, None]
    return blended


def _window(image, start, size, axis):
    """Cut `size` pixels from `start` on along an axis; what lies beyond the picture is its reflection."""
    length = image.shape[axis]
    if start + size <= length:
        return image[start : start + size] if axis == 0 else image[:, start : start + size]
    return np.take(image, np.pad(np.arange(length), (0, start + size - length), mode="reflect")[start:], axis)
