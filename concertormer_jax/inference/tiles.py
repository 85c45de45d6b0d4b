"""Tiles: what `--tile` and `--tlc` mean in pixels, where tiles lie, and how they are cut and blended smoothly."""

import dataclasses
import math

import numpy as np

from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime.errors import UserError

# Tiles begin at multiples of this number of pixels, or of more if the network's `multiple` asks for it (`tile_grid`).
GRID_PX = 64
# The GoPro set's grid factor: windows of 1.75 times the crop that the network was trained on.
TLC_GRID_FACTOR = 1.75
UNKNOWN_TRAIN_CROP_PX = 256  # the paper's training size, for weights that do not say theirs

LARGEST_PX = 2**20  # of a tile or window


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


def fixed_axis(length: int, tile: int, overlap: int, multiple: int = GRID_PX) -> TiledAxis:
    """`tiled_axis` for a length of any number of pixels, padded so that every tile has `tile` of them.

    multiple: that of the network; a length above `tile` is padded to a multiple of `tile_grid(multiple)` pixels.
    """
    grid = tile_grid(multiple)
    return tiled_axis(max(tile, padded_size(length, grid)), tile, overlap, grid)


def whole_axis(length: int, multiple: int = GRID_PX) -> TiledAxis:
    """One tile of the whole length, padded to a multiple of `multiple` pixels."""
    padded = padded_size(length, multiple)
    return TiledAxis(padded, (0,), np.ones((1, padded), np.float32))


def cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Cut a tile out of [H, W, C]; what lies beyond the picture is its reflection, as the network pads it."""
    return _cut_axis(_cut_axis(image, top, height, axis=0), left, width, axis=1)


def _cut_axis(image, start, size, axis):
    length = image.shape[axis]
    if start + size <= length:
        return image[start : start + size] if axis == 0 else image[:, start : start + size]
    return np.take(image, np.pad(np.arange(length), (0, start + size - length), mode="reflect")[start:], axis)


def add(
    blended: np.ndarray, tile: np.ndarray, top: int, left: int, row_weights: np.ndarray, column_weights: np.ndarray
) -> None:
    """Add a tile [h, w, C], weighted, to the picture [H, W, C] in place; what lies beyond the picture is left out."""
    inside = blended[top : top + tile.shape[0], left : left + tile.shape[1]]
    rows, columns = inside.shape[:2]
    inside += tile[:rows, :columns] * (row_weights[:rows, None] * column_weights[:columns])[:, :, None]


def tlc_window(setting: str, train_crop_px: int | None, multiple: int = GRID_PX) -> int | None:
    """Return the TLC window in pixels at full resolution, None for no TLC.

    setting: `auto` (1.75 times the largest training crop, or 448 if that is not known, rounded up to what fits), `off`,
        or a number of pixels. multiple: that of the network; its windows are multiples of it and of 64 pixels.
    Raises UserError, naming the nearest sizes, for a number that does not fit.
    """
    if setting == "off":
        return None
    if setting == "auto":
        return tlc_window_at_least(round(TLC_GRID_FACTOR * (train_crop_px or UNKNOWN_TRAIN_CROP_PX)), multiple)
    step = tile_grid(multiple)
    return _multiple_of(step, "--tlc", setting, least=step)


def tlc_window_at_least(window: int, multiple: int) -> int:
    """The smallest window of at least `window` pixels that a network of this `multiple` takes."""
    return padded_size(window, tile_grid(multiple))


def tile_setting(setting: str, multiple: int = GRID_PX) -> int | None:
    """Return the tile size in pixels that `--tile` asks for: None for `auto`, 0 for none (`off` or `0`).

    multiple: that of the network; tiles are multiples of `tile_grid(multiple)`, 64 for most networks, and at least two.
    Raises UserError, naming the nearest sizes, for any other number.
    """
    if setting == "auto":
        return None
    if setting in ("off", "0"):
        return 0
    grid = tile_grid(multiple)
    return _multiple_of(grid, "--tile", setting, least=2 * grid)


def overlap_px(tile: int, multiple: int = GRID_PX) -> int:
    """Return how many pixels neighbouring tiles of `tile` pixels share: about an eighth, on the tiles' grid."""
    grid = tile_grid(multiple)
    return grid * max(1, round(tile / 8 / grid))


def _multiple_of(step, flag, text, least):
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{flag}={text}: must be auto, off or a number of pixels.") from None
    if value > LARGEST_PX:
        raise UserError(f"{flag}={text}: must be at most {LARGEST_PX} pixels, or off.")
    if value < least or value % step:
        below = value // step * step
        nearest = f"{below} and {below + step}" if below >= least else f"{least}"
        raise UserError(f"{flag}={text}: must be a multiple of {step} pixels from {least} up; nearest: {nearest}.")
    return value
