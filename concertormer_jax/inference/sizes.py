"""What `--tlc` and `--tile` mean in pixels."""

from concertormer_jax.inference.tiles import GRID_PX, tile_grid
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime.errors import UserError

# The GoPro set's grid factor: windows of 1.75 times the crop that the network was trained on.
TLC_GRID_FACTOR = 1.75
UNKNOWN_TRAIN_CROP_PX = 256  # the paper's training size, for weights that do not say theirs

LARGEST_PX = 2**20  # of a tile or window


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
