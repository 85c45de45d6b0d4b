"""Restoring pictures of any size with one program: in tiles of a fixed canvas, checked, and blended."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from concertormer_jax.inference import tiles
from concertormer_jax.inference.compiled import CompiledPerShape, overlap_px, restore_floats, tile_setting, tlc_window
from concertormer_jax.inference.tiles import tile_grid
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime.devices import explain_out_of_memory
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import user_path
from concertormer_jax.weights.checkpoints import load_model

# Photographs are restored in one of these sizes, so that no picture asks for a program of its own.
CANVASES_PX = (384, 768)  # multiples of 128, which every network's grid of tiles divides
# Deblurring moves light over tens of pixels and makes none: the mean of a cell stays about as it was. In real pairs of
# blurred and sharp frames (GOPRO and REDS) it moves by 0.12 at most.
CELL_PX = 64
LARGEST_DEPARTURE = 0.15
_TILES_AT_ONCE = {"cpu": 1}  # on a CPU several tiles at once take as long as one after the other
_TILES_ON_ACCELERATORS = 4
_IN_FLIGHT = 2  # calls of the program that the device is given before the first result is waited for


def canvas_px(sizes: Iterable[tuple[int, int]], multiple: int) -> int:
    """Return the side of the square canvas for pictures of `sizes` (height, width): the smallest that holds each.

    The largest serves for all larger pictures, which are restored in several tiles of it. multiple: that of the
    network; a canvas is a multiple of `tile_grid(multiple)`.
    """
    longest = max(max(size) for size in sizes)
    fitting = (canvas for canvas in CANVASES_PX if canvas >= longest)
    return padded_size(next(fitting, CANVASES_PX[-1]), tile_grid(multiple))


class Restored(NamedTuple):
    """rgb: float32 [H, W, 3] in [0, 1]. without_tlc, kept: how many tiles were done again, and how many left alone."""

    rgb: np.ndarray
    tiles: int
    tile_px: int
    without_tlc: int
    kept: int

    @property
    def notes(self) -> list[str]:
        """What to tell of tiles whose colours departed."""
        notes = []
        if self.without_tlc:
            notes.append(f"{self.without_tlc} of {self.tiles} tiles were restored without TLC, their colours being off")
        if self.kept:
            notes.append(f"{self.kept} of {self.tiles} tiles stay as they were, the restored colours being off")
        return notes


class _Tile(NamedTuple):
    top: int
    left: int
    pixels: np.ndarray  # float32 [tile, tile, 3]


def departure(restored: jax.Array, images: jax.Array) -> jax.Array:
    """How far the colours of a picture moved: the largest change of the mean of any 64x64 cell, in any channel.

    restored, images: float32 [B, H, W, 3] in [0, 1]. Returns [B], in [0, 1]. Rows and columns behind the last whole
    cell are left out; a picture smaller than a cell is one.
    """
    batch, height, width, channels = images.shape
    rows, columns = min(CELL_PX, height), min(CELL_PX, width)
    change = (restored - images)[:, : height // rows * rows, : width // columns * columns]
    cells = change.reshape(batch, height // rows, rows, width // columns, columns, channels).mean(axis=(2, 4))
    return jnp.abs(cells).max(axis=(1, 2, 3))


def restore_checked(module) -> Callable:
    """Return a function of (params, float32 [B, H, W, 3] in [0, 1]) that gives (restored, finite, departure)."""
    restore = restore_floats(module)

    def restore_and_compare(params, images):
        restored, finite = restore(params, images)
        return restored, finite, departure(restored, images)

    return restore_and_compare


class Restorer:
    """Restores pictures of any size with a loaded checkpoint (`checkpoints.LoadedModel`) on the first device.

    tlc: as in `settings.tlc_window`; tile: as in `settings.tile_setting`, `auto` being the canvas that fits.
    A restored tile whose colours depart from the input's beyond `LARGEST_DEPARTURE` is restored again without TLC, and
    if that departs as well, the input stays. Raises UserError for other settings.
    """

    def __init__(self, model, *, tlc: str = "auto", tile: str = "auto", log: Callable[[str], None] = tqdm.write):
        self._multiple = model.module.multiple
        self._tile = tile_setting(tile, self._multiple)
        self.device = jax.devices()[0]
        self._window = tlc_window(tlc, model.train_crop_px, self._multiple)
        self._together = _TILES_AT_ONCE.get(self.device.platform, _TILES_ON_ACCELERATORS)
        self._restore, self._restore_without_tlc = (
            CompiledPerShape(restore_checked(module), log, made_from=str(module))
            for module in (model.module.clone(tlc_window=window) for window in (self._window, None))
        )
        self._params = jax.device_put(model.params, self.device)

    def choose_canvas(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Restore all pictures of `sizes` (height, width) on one canvas, so that one program serves them all."""
        sizes = list(sizes)
        if self._tile is None and sizes:
            self._tile = canvas_px(sizes, self._multiple)

    def tile_px(self, height: int, width: int) -> int:
        """Return the side of the tiles for a picture of height x width; that of the padded picture for one tile."""
        if self._tile is None:
            return canvas_px([(height, width)], self._multiple)
        return self._tile or max(padded_size(height, self._multiple), padded_size(width, self._multiple))

    def __call__(self, rgb: np.ndarray, progress: Callable[[int, int], None] | None = None) -> Restored:
        """Restore float32 [H, W, 3] in [0, 1]. progress: called with (tiles done, all tiles) in place of a bar.

        Raises UserError if the device's memory does not suffice or the network's output is not finite.
        """
        height, width = rgb.shape[:2]
        tile = self.tile_px(height, width)
        if self._tile == 0:
            rows, columns = (tiles.whole_axis(length, self._multiple) for length in (height, width))
        else:
            overlap = overlap_px(tile, self._multiple)
            rows, columns = (tiles.fixed_axis(length, tile, overlap, self._multiple) for length in (height, width))
        blended = np.zeros(rgb.shape, np.float32)
        count = len(rows.starts) * len(columns.starts)
        again = kept = done = 0
        with (
            explain_out_of_memory("give smaller tiles, for instance --tile=384."),
            tqdm(
                total=count, unit="tile", leave=False, disable=count == 1 or progress is not None, dynamic_ncols=True
            ) as bar,
        ):
            cuts = (
                (row, column, _Tile(top, left, tiles.cut(rgb, top, left, rows.size, columns.size)))
                for row, top in enumerate(rows.starts)
                for column, left in enumerate(columns.starts)
            )
            for row, column, tile_cut, restored, moved in self._restored(cuts):
                if moved > LARGEST_DEPARTURE:
                    restored, moved = self._again(tile_cut.pixels, restored, moved)
                    again += 1
                if moved > LARGEST_DEPARTURE:
                    restored = tile_cut.pixels
                    kept += 1
                tiles.add(blended, restored, tile_cut.top, tile_cut.left, rows.weights[row], columns.weights[column])
                bar.update()
                done += 1
                if progress is not None:
                    progress(done, count)
        return Restored(blended, count, tile, again - kept, kept)

    def _restored(self, cuts) -> Iterator:
        """Yield (row, column, tile, restored, departure) in order; the device works ahead of what is asked for."""
        waiting = collections.deque()
        batch = []
        for entry in cuts:
            batch.append(entry)
            if len(batch) == self._together:
                waiting.append((batch, self._start(batch)))
                batch = []
            if len(waiting) > _IN_FLIGHT:
                yield from self._finished(*waiting.popleft())
        if batch:
            waiting.append((batch, self._start(batch)))
        while waiting:
            yield from self._finished(*waiting.popleft())

    def _start(self, batch):
        pixels = [tile.pixels for _, _, tile in batch]
        pixels += [pixels[-1]] * (self._together - len(pixels))
        return self._restore(self._params, jax.device_put(np.stack(pixels), self.device))

    def _finished(self, batch, results):
        restored, finite, moved = jax.device_get(results)
        if not finite.all():
            raise UserError("--ckpt: the network's output is not finite; its weights are damaged or diverged.")
        for (row, column, tile), *result in zip(batch, restored, moved, strict=False):
            yield row, column, tile, *result

    def _again(self, pixels, restored, moved):
        """Restore a tile without TLC, if there was any: (restored, departure)."""
        if self._window is None or self._window >= max(pixels.shape[:2]):
            return restored, moved
        images = jax.device_put(pixels[None], self.device)
        restored, _, moved = jax.device_get(self._restore_without_tlc(self._params, images))
        return restored[0], moved[0]


def load(ckpt, *, tlc: str = "auto", tile: str = "auto") -> Restorer:
    """Open a training folder, a checkpoint or a weights file for restoring pictures.

    tlc, tile: as of `Restorer`. Raises UserError for a `ckpt` that holds no network, and for other settings.
    """
    return Restorer(load_model(user_path(ckpt)), tlc=tlc, tile=tile)
