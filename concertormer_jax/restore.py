"""Restore photographs: `python -m concertormer_jax.restore --ckpt=DIR IN OUT`, for one picture or a folder of them."""

from concertormer_jax import interrupts  # noqa: F401  (first: it takes Ctrl-C while the rest is imported)

# isort: split

import argparse
import dataclasses
import time
from pathlib import Path

import absl.logging
import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from concertormer_jax.checkpoints import load_model
from concertormer_jax.devices import out_of_memory_explained, prepare_to_compile
from concertormer_jax.errors import UserError, reported
from concertormer_jax.evaluation.forward import CompiledBySize, restore_floats
from concertormer_jax.evaluation.outputs import require_writable
from concertormer_jax.evaluation.pictures import side_by_side
from concertormer_jax.evaluation.settings import overlap_px, tile_px, tile_setting, tlc_window
from concertormer_jax.files import written_atomically
from concertormer_jax.paths import local_path, user_path
from concertormer_jax.photo import FORMATS, losses, output_format, read_photo, write_photo
from concertormer_jax.tiles import restore_tiled, tiled_axes


class PhotoRestorer:
    """Restores pictures of any size with a loaded checkpoint (`checkpoints.LoadedModel`) on the first device.

    tlc: as in `settings.tlc_window`; tile: as in `settings.tile_setting`. Raises UserError for other values.
    """

    def __init__(self, model, *, tlc="auto", tile="auto", log=tqdm.write):
        self._multiple = model.module.multiple
        self._tile = tile_setting(tile, self._multiple)
        self.device = jax.devices()[0]
        window = tlc_window(tlc, model.train_crop_px, self._multiple)
        module = model.module.clone(tlc_window=window)
        self._restore = CompiledBySize(restore_floats(module), log, made_from=str(module))
        self._params = jax.device_put(model.params, self.device)

    def tiling(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (tile size in pixels, rows of tiles, columns of tiles) for a picture of height x width."""
        tile = tile_px(self._tile, height, width, self._multiple)
        rows, columns = tiled_axes(height, width, tile, overlap_px(tile, self._multiple), self._multiple)
        return tile, len(rows.starts), len(columns.starts)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Restore float32 [H, W, 3] in [0, 1]; the result has the same shape and range.

        Raises UserError if the device's memory does not suffice or the network's output is not finite.
        """
        tile, rows, columns = self.tiling(*rgb.shape[:2])
        with (
            out_of_memory_explained("give smaller tiles, for instance --tile=448."),
            tqdm(total=rows * columns, unit="tile", leave=False, disable=rows * columns == 1) as bar,
        ):

            def apply(images):
                restored, finite = jax.device_get(self._restore(self._params, jax.device_put(images, self.device)))
                if not finite.all():
                    raise UserError("--ckpt: the network's output is not finite; its weights are damaged or diverged.")
                bar.update()
                return restored

            return restore_tiled(apply, rgb, tile, overlap_px(tile, self._multiple), self._multiple)


def restore_files(restorer: PhotoRestorer, source, destination, *, compare=False, log=tqdm.write) -> list[Path]:
    """Restore the picture `source` to `destination`, or every picture in the folder `source` into the folder it names.

    A picture may also go into a folder that exists; in folders it keeps its name. With `compare`, a picture of before
    and after is written beside each result. Returns the results' paths. In a folder, a picture that cannot be restored
    does not stop the others; UserError with their number follows at the end.
    """
    jobs = plan(source, destination)
    require_writable(jobs[0][1].parent)
    failures = []
    for before, after in jobs:
        try:
            log(_restore_file(restorer, before, after, compare))
        except UserError as error:
            if len(jobs) == 1:
                raise
            log(f"error: {error}")
            failures.append(before)
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} pictures could not be restored, the first is {failures[0]}.")
    return [after for _, after in jobs]


def plan(source, destination) -> list[tuple[Path, Path]]:
    """Return (picture, result) for all that is to be done; UserError if a path is missing or a result an original."""
    source, destination = local_path(source, "IN"), local_path(destination, "OUT")
    if source.is_dir():
        if destination.is_file():
            raise UserError(f"{destination}: is a file, but {source} is a folder; name a folder for the results.")
        named = (path for path in source.iterdir() if not path.name.startswith("."))
        pictures = sorted(path for path in named if path.suffix.lower() in FORMATS and path.is_file())
        if not pictures:
            raise UserError(f"{source}: holds no pictures; expected files that end in {', '.join(FORMATS)}.")
        jobs = [(path, destination / path.name) for path in pictures]
    elif source.is_file():
        jobs = [(source, destination / source.name if destination.is_dir() else destination)]
        output_format(jobs[0][1])
    else:
        raise UserError(f"{source}: no such picture or folder; check the path.")
    for before, after in jobs:
        if after.exists() and after.samefile(before):
            raise UserError(f"{after}: would overwrite the original; name another place for the result.")
    return jobs


def _restore_file(restorer, before, after, compare):
    """Restore one file and return a line on it."""
    start = time.perf_counter()
    photo = read_photo(before)
    restored = dataclasses.replace(photo, rgb=restorer(photo.rgb))
    write_photo(after, restored)
    if compare:
        with written_atomically(after.with_name(f"{after.stem}_compare.png")) as temporary:
            _comparison(photo.rgb, restored.rgb).save(temporary, format="PNG")
    height, width = photo.rgb.shape[:2]
    tile, rows, columns = restorer.tiling(height, width)
    tiles = f"{rows}x{columns} tiles of {tile} px" if rows * columns > 1 else "whole"
    seconds = time.perf_counter() - start
    notes = "".join(f"\n  note: {before} {note}" for note in photo.notes)
    notes += "".join(f"\n  note: {after}: {loss}" for loss in losses(photo, after))
    return f"{after}: {height}x{width}, {tiles}, {restorer.device.device_kind}, {seconds:.1f} s{notes}"


def _comparison(before, after) -> Image.Image:
    return side_by_side([np.rint(255 * rgb).astype(np.uint8) for rgb in (before, after)], ["before", "after"])


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m concertormer_jax.restore", description=__doc__)
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="checkpoint, training folder or converted weights")
    parser.add_argument("input", metavar="IN", help="a picture (PNG, JPEG, WebP, TIFF) or a folder of them")
    parser.add_argument("output", metavar="OUT", help="the result's name, whose suffix decides its format, or a folder")
    parser.add_argument(
        "--tile", default="auto", metavar="PIXELS", help="tile size, a multiple of 64; auto; off for none"
    )
    parser.add_argument("--tlc", default="auto", metavar="auto|off|N", help="window of the test-time local converter")
    parser.add_argument("--compare", action="store_true", help="also write before and after side by side")
    flags = parser.parse_args(arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells of every file otherwise
    with reported():
        prepare_to_compile()
        plan(flags.input, flags.output)  # paths are checked before the checkpoint is read
        restorer = PhotoRestorer(load_model(user_path(flags.ckpt, "--ckpt")), tlc=flags.tlc, tile=flags.tile)
        restore_files(restorer, flags.input, flags.output, compare=flags.compare)


if __name__ == "__main__":
    main()
