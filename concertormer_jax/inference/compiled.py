"""What `--tlc` and `--tile` mean in pixels."""

import time
from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.inference.tiles import GRID_PX, tile_grid
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime import trace_cache
from concertormer_jax.runtime.devices import compile_interruptibly
from concertormer_jax.runtime.errors import UserError

# The network as evaluation and restoration run it: compiled once per image size, and saying so.


class CompiledPerShape:
    """A jitted `function(params, images)` that is compiled ahead of time for every new shape of `images`.

    log: called with a line before and after each compilation.
    made_from: all that `function` depends on, as text, with which its traces are kept (`kept_traces`); None for not.
    jit_options: for `jax.jit`. The shapes and shardings of `params` must not change between calls.
    """

    def __init__(self, function, log=print, *, made_from=None, **jit_options):
        if made_from is None:
            self._lower = jax.jit(function, **jit_options).lower
        else:
            self._lower = partial(trace_cache.lower, function, made_from=made_from, **jit_options)
        self._compiled = {}
        self._log = log

    def __call__(self, params, images):
        if images.shape not in self._compiled:
            size = f"{images.shape[1]}x{images.shape[2]}"
            self._log(f"compiling {size} (batch {images.shape[0]}) ...")
            start = time.perf_counter()
            self._compiled[images.shape] = compile_interruptibly(self._lower(params, images))
            self._log(f"compiled {size} in {time.perf_counter() - start:.1f} s")
        return self._compiled[images.shape](params, images)


def restore_floats(module):
    """Return a function of (params, float32 [B, H, W, 3] in [0, 1]) that gives (restored, finite).

    restored: float32 [B, H, W, 3] in [0, 1]; finite: bool [B], whether all values of the network's output are numbers.
    """

    def restore(params, images):
        output = module.apply({"params": params}, images)[-1].astype(jnp.float32)
        return jnp.clip(output, 0, 1), jnp.isfinite(output).all(axis=(1, 2, 3))

    return restore


def restore_bytes(module):
    """Return a function like that of `restore_floats` from uint8 to uint8 images, clipped and rounded."""
    restore = restore_floats(module)

    def restore_uint8(params, images):
        output, finite = restore(params, images.astype(jnp.float32) / 255)
        return jnp.round(output * 255).astype(jnp.uint8), finite

    return restore_uint8


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
