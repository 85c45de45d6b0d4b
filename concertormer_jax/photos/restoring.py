"""Restoring the files of a plan, one after the other."""

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from concertormer_jax.data.images import image_size
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.photos.photo_io import FORMATS, losses, read_photo, require_fits, write_photo
from concertormer_jax.photos.restore_plan import Plan
from concertormer_jax.photos.sheets import side_by_side
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.memory import require_memory
from concertormer_jax.runtime.outputs import require_writable

_BYTES_PER_PIXEL = 44  # beside the picture itself: the result, and what is made of it to be written


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a plan: the results that were written, and why the other pictures have none."""

    restored: tuple[Path, ...]
    failed: dict[Path, str]


def restore_files(restorer: Restorer, work: Plan, *, log=tqdm.write) -> Outcome:
    """Restore every picture of a plan. One that cannot be restored, for whatever reason, does not stop the others.

    log: called with lines to print, which hold no character that a terminal acts on.
    Raises UserError before the first picture if a folder for results cannot be written, and if a plan's only picture
    cannot be restored.
    """
    for folder in work.folders:
        require_writable(folder)
    restorer.choose_canvas(_sizes(work))
    restored, failed = [], {}

    def say(text):
        log(printable(text))

    for job in work.jobs:
        try:
            _restore_file(restorer, job, say)
            restored.append(job.after)
        except Exception as error:  # also one that nobody foresaw: the other pictures may be well
            reason = str(error)
            if not isinstance(error, UserError):
                reason = f"could not be restored ({type(error).__name__}: {error})."
            if not reason.startswith((str(job.before), str(job.after))):
                reason = f"{job.before}: {reason}"
            if len(work.jobs) == 1:
                raise UserError(reason) from error
            failed[job.before] = reason
            say(f"error: {reason}")
    return Outcome(tuple(restored), failed)


def _sizes(work):
    """(height, width) of the pictures, without those that cannot be read, of which more is said in their turn."""
    for job in work.jobs:
        with contextlib.suppress(UserError):
            yield image_size(job.before)


def _restore_file(restorer, job, say):
    """Restore one file. What its new format cannot hold is found and said before the network is run."""
    start = time.perf_counter()
    photo = read_photo(job.before)
    require_fits(photo, job.after)
    height, width = photo.rgb.shape[:2]
    require_memory(height * width * _BYTES_PER_PIXEL, f"{job.before}: restoring {width}x{height} pixels")
    for note in (*photo.notes, *_about_its_name(job.before, photo)):
        say(f"note: {job.before} {note}")
    for loss in losses(photo, job.after):
        say(f"note: {job.after}: {loss}")
    result = restorer(photo.rgb)
    for note in result.notes:
        say(f"note: {job.before}: {note}.")
    restored = dataclasses.replace(photo, rgb=result.rgb)
    write_photo(job.after, restored)
    if job.comparison:
        with written_atomically(job.comparison) as temporary:
            _comparison(photo.rgb, restored.rgb).save(temporary, format="PNG")
    tiles = f"{result.tiles} tiles of {result.tile_px} px" if result.tiles > 1 else "whole"
    seconds = time.perf_counter() - start
    say(f"{job.after}: {height}x{width}, {tiles}, {restorer.device.device_kind}, {seconds:.1f} s")


def _about_its_name(path, photo):
    named = FORMATS.get(path.suffix.lower(), photo.file_format)
    return () if photo.file_format in (named, "MPO") else (f"is a {photo.file_format} by its content.",)


def _comparison(before, after) -> Image.Image:
    return side_by_side([as_bytes(before), as_bytes(after)], ["before", "after"])


def as_bytes(rgb):
    return np.rint(255 * rgb).astype(np.uint8)
