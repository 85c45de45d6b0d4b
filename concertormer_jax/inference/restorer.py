"""Restoring pictures of any size with one program: in tiles of a fixed canvas, checked, and blended."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from concertormer_jax.inference import tiles
from concertormer_jax.inference.compiled import CompiledPerShape, precision_for, restore_floats
from concertormer_jax.inference.sharding import ShardedRestorer, memory_bytes, needs_sharding, require_setting
from concertormer_jax.inference.tiles import TiledAxis, overlap_px, tile_grid, tile_setting, tlc_window
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime import threads
from concertormer_jax.runtime.devices import explain_out_of_memory
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import BUNDLED_WEIGHTS
from concertormer_jax.runtime.trace_cache import fingerprint
from concertormer_jax.weights.checkpoints import load_model

# Photographs are restored in tiles of one of these sizes, so that no picture needs a program of its own.
CANVASES_PX = (384, 768)  # multiples of 128, which every network's grid of tiles divides
# Restoring moves light over tens of pixels and makes none, so the mean colour of a cell of 64x64 pixels hardly changes.
CELL_PX = 64
LARGEST_COLOUR_SHIFT = 0.15
_BATCH = {"cpu": 1}  # tiles: on a CPU several at once take as long as one after the other
_BATCH_ON_ACCELERATORS = 4
_IN_FLIGHT = 3  # batches that the device is given before the first result is waited for


def canvas_px(sizes: Iterable[tuple[int, int]], multiple: int) -> int:
    """Return the side of the square canvas for pictures of `sizes` (height, width): the smallest that holds each.

    The largest serves for all larger pictures, which are restored in several tiles of it. multiple: that of the
    network; a canvas is a multiple of `tile_grid(multiple)`, and at least two, as neighbouring tiles share one.
    """
    longest = max(max(size) for size in sizes)
    fitting = (canvas for canvas in CANVASES_PX if canvas >= longest)
    grid = tile_grid(multiple)
    return max(padded_size(next(fitting, CANVASES_PX[-1]), grid), 2 * grid)


class Restored(NamedTuple):
    """A restored picture. rgb: float32 [H, W, 3] in [0, 1].

    tiles: how many of tile_px x tile_px pixels it took. without_tlc: how many of them were restored again without TLC;
    kept: how many stay as they were in the input.
    """

    rgb: np.ndarray
    tiles: int
    tile_px: int
    without_tlc: int
    kept: int

    @property
    def notes(self) -> list[str]:
        """Return sentences on tiles whose colours shifted too far."""
        notes = []
        if self.without_tlc:
            notes.append(f"{self.without_tlc} of {self.tiles} tiles were restored without TLC, their colours being off")
        if self.kept:
            notes.append(f"{self.kept} of {self.tiles} tiles stay as they were, the restored colours being off")
        return notes


class _Picture:
    """A picture whose tiles are being restored: where they lie, and the sum of those that are done.

    rgb: float32 [H, W, 3] in [0, 1].
    """

    def __init__(self, rgb: np.ndarray, rows: TiledAxis, columns: TiledAxis):
        self._rgb, self._rows, self._columns = rgb, rows, columns
        self._blended = np.zeros(rgb.shape, np.float32)
        self.count = len(rows.starts) * len(columns.starts)
        self.done = self.redone = self.kept = 0

    def tiles(self) -> Iterator["_Tile"]:
        """Cut out one tile after the other."""
        for row, top in enumerate(self._rows.starts):
            for column, left in enumerate(self._columns.starts):
                pixels = tiles.cut(self._rgb, top, left, self._rows.size, self._columns.size)
                yield _Tile(self, row, column, pixels)

    def add(self, tile: "_Tile", restored: np.ndarray) -> None:
        """Blend a restored tile into the sum."""
        rows, columns = self._rows, self._columns
        corner = rows.starts[tile.row], columns.starts[tile.column]
        tiles.add(self._blended, restored, *corner, rows.weights[tile.row], columns.weights[tile.column])
        self.done += 1

    def result(self) -> Restored:
        """Return the picture when all tiles are done."""
        tile_px = max(self._rows.size, self._columns.size)
        return Restored(self._blended, self.count, tile_px, self.redone - self.kept, self.kept)


class _Tile(NamedTuple):
    picture: _Picture
    row: int
    column: int
    pixels: np.ndarray  # float32 [tile, tile, 3]


def colour_shift(restored: jax.Array, images: jax.Array) -> jax.Array:
    """Return by how much the mean of a cell of 64x64 pixels changes, the largest over all cells and channels.

    restored, images: float32 [B, H, W, 3] in [0, 1]; the result is [B], in [0, 1]. What is left over at the bottom and
    the right, beside whole cells, does not count; a picture smaller than a cell is one.
    """
    batch, height, width, channels = images.shape
    rows, columns = min(CELL_PX, height), min(CELL_PX, width)
    change = (restored - images)[:, : height // rows * rows, : width // columns * columns]
    cells = change.reshape(batch, height // rows, rows, width // columns, columns, channels).mean(axis=(2, 4))
    return jnp.abs(cells).max(axis=(1, 2, 3))


def restore_checked(module) -> Callable:
    """Return a function of (params, float32 [B, H, W, 3] in [0, 1]) that gives (restored, finite, colour shift)."""
    restore = restore_floats(module)

    def restore_and_compare(params, images):
        restored, finite = restore(params, images)
        return restored, finite, colour_shift(restored, images)

    return restore_and_compare


def _checked(rgb: ArrayLike) -> np.ndarray:
    """The picture as float32. Raises ValueError unless it is floats [H, W, 3] in [0, 1]."""
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size or not jnp.issubdtype(rgb.dtype, jnp.floating):
        raise ValueError(f"rgb must be floats [H, W, 3] in [0, 1], got {rgb.dtype} {list(rgb.shape)}")
    if not (rgb.min() >= 0 and rgb.max() <= 1):  # both are false for what is not a number
        raise ValueError(f"rgb must lie in [0, 1], got values from {rgb.min()} to {rgb.max()}; divide bytes by 255")
    return rgb.astype(np.float32, copy=False)


class _Programs(NamedTuple):
    """The network for tiles that one device holds, and for those that are split over all devices."""

    whole: CompiledPerShape
    sharded: ShardedRestorer


class Restorer:
    """Restores pictures of any size with a loaded checkpoint (`checkpoints.LoadedModel`) on the first device.

    tlc: as in `tiles.tlc_window`; tile: as in `tiles.tile_setting`, `auto` being the canvas that fits; precision: of a
    float32 network's products, one of `compiled.PRECISIONS`; shard: one of `sharding.SETTINGS`, auto to split a tile,
    such as a picture restored whole, over all devices if the first cannot hold it.
    A tile whose colours shift by more than `LARGEST_COLOUR_SHIFT` is restored again without TLC; if they shift as far
    there, the input stays. Raises UserError for other settings.
    """

    def __init__(
        self,
        model,
        *,
        tlc: str = "auto",
        tile: str = "auto",
        precision: str = "highest",
        shard: str = "auto",
        log: Callable[[str], None] = tqdm.write,
    ):
        require_setting(shard)
        self._multiple = model.module.multiple
        self._tile = tile_setting(tile, self._multiple)
        self.device = jax.devices()[0]
        self._window = tlc_window(tlc, model.train_crop_px, self._multiple)
        # A picture that is restored whole has the device's memory to itself.
        self._batch = 1 if self._tile == 0 else _BATCH.get(self.device.platform, _BATCH_ON_ACCELERATORS)
        self._shard, self._module, self._devices = shard, model.module, jax.local_devices()
        self._with_tlc, self._without_tlc = (
            _Programs(
                CompiledPerShape(
                    restore_checked(module),
                    log,
                    precision=precision_for(module, precision),
                    fingerprint=fingerprint(module),
                    device_kind=self.device.device_kind,
                ),
                ShardedRestorer(restore_checked, module, model.params, self._devices, precision=precision, log=log),
            )
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
        """Restore floats [H, W, 3] in [0, 1]. progress: called with (tiles done, all tiles) in place of a bar.

        Raises ValueError for anything else, and UserError if the device's memory does not suffice or the network's
        output is not finite.
        """
        if progress is not None:
            return next(self.each([rgb], progress))
        count = self._laid_out(rgb).count
        with tqdm(total=count, unit="tile", leave=False, disable=count == 1, dynamic_ncols=True) as bar:
            return next(self.each([rgb], lambda *_: bar.update()))

    def each(
        self, pictures: Iterable[np.ndarray], progress: Callable[[int, int], None] = lambda done, count: None
    ) -> Iterator[Restored]:
        """Yield every picture restored, in order; the next ones are taken while the device works.

        Arguments and errors as in a call for a single picture.
        """
        cuts = (tile for rgb in pictures for tile in self._laid_out(rgb).tiles())
        with explain_out_of_memory("give smaller tiles, for instance --tile=384."):
            for tile, restored, shift in self._restored(cuts):
                picture = tile.picture
                if shift > LARGEST_COLOUR_SHIFT:
                    restored, shift = self._again(tile.pixels, restored, shift)
                    picture.redone += 1
                if not shift <= LARGEST_COLOUR_SHIFT:  # nor a number
                    restored = tile.pixels
                    picture.kept += 1
                picture.add(tile, restored)
                progress(picture.done, picture.count)
                if picture.done == picture.count:
                    yield picture.result()

    def _laid_out(self, rgb):
        rgb = _checked(rgb)
        height, width = rgb.shape[:2]
        if self._tile == 0:
            return _Picture(rgb, *(tiles.whole_axis(length, self._multiple) for length in (height, width)))
        tile = self.tile_px(height, width)
        overlap = overlap_px(tile, self._multiple)
        return _Picture(rgb, *(tiles.fixed_axis(length, tile, overlap, self._multiple) for length in (height, width)))

    def _restored(self, cuts) -> Iterator:
        """Yield (tile, restored, colour shift) in order, while the device works on the next batches."""
        waiting = collections.deque()
        for batch in self._batches(cuts):
            waiting.append((batch, self._start(batch)))
            if len(waiting) == _IN_FLIGHT:
                yield from self._finished(*waiting.popleft())
        while waiting:
            yield from self._finished(*waiting.popleft())

    def _batches(self, cuts):
        """Yield lists of up to `_batch` tiles of one size, of one tile if it is split over the devices."""
        for shape, same_size in itertools.groupby(cuts, key=lambda tile: tile.pixels.shape):
            while batch := list(itertools.islice(same_size, 1 if self._is_sharded(shape) else self._batch)):
                yield batch

    def _start(self, batch):
        pixels = [tile.pixels for tile in batch]
        pixels += [pixels[-1]] * (self._batch - len(pixels))
        return self._run(self._with_tlc, pixels)

    def _run(self, programs, pixels):
        if self._is_sharded(pixels[0].shape):
            return programs.sharded(pixels[0])
        return programs.whole(self._params, jax.device_put(np.stack(pixels), self.device))

    def _is_sharded(self, shape):
        memory = memory_bytes(self.device)
        return needs_sharding(self._shard, self._module, *shape[:2], len(self._devices), memory)

    def _finished(self, batch, results):
        # In another thread, so that a signal does not wait for the device.
        restored, finite, shifts = threads.run(lambda: jax.device_get(results)).result()
        if not finite.all():
            raise UserError("--ckpt: the network's output is not finite; its weights are damaged or diverged.")
        yield from zip(batch, restored, shifts, strict=False)  # without those that filled the batch up

    def _again(self, pixels, restored, shift):
        """Restore a tile again without TLC: (restored, colour shift). What came of it, if TLC did nothing."""
        if self._window is None or self._window >= max(pixels.shape[:2]):
            return restored, shift
        restored, _, shifts = jax.device_get(self._run(self._without_tlc, [pixels]))
        return restored[0], shifts[0]


def load(
    ckpt=BUNDLED_WEIGHTS, *, tlc: str = "auto", tile: str = "auto", precision: str = "highest", shard: str = "auto"
) -> Restorer:
    """Open a training folder, a checkpoint, a weights file or, by default, the weights that come with this software.

    tlc, tile, precision, shard: as of `Restorer`. Raises UserError for a `ckpt` that holds no network, and for other
    settings.
    """
    return Restorer(load_model(ckpt), tlc=tlc, tile=tile, precision=precision, shard=shard)
