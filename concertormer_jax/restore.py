"""Restore photographs: `python -m concertormer_jax.restore --ckpt=DIR IN OUT`, for one picture or a folder of them."""

from concertormer_jax import interrupts  # noqa: F401  (first: it takes Ctrl-C while the rest is imported)

# isort: split

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import absl.logging
import numpy as np
from PIL import Image
from tqdm import tqdm

from concertormer_jax.arguments import parse_arguments
from concertormer_jax.checkpoints import load_model
from concertormer_jax.data.decoding import READABLE
from concertormer_jax.data.images import image_size
from concertormer_jax.devices import prepare_to_compile
from concertormer_jax.errors import UserError, reported
from concertormer_jax.evaluation.outputs import require_writable
from concertormer_jax.evaluation.pictures import side_by_side
from concertormer_jax.files import written_atomically
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.pages.comparison import PAGE_PICTURES, Compared, write_comparison
from concertormer_jax.paths import user_path
from concertormer_jax.photo import FORMATS, losses, read_photo, require_fits, write_photo
from concertormer_jax.restore_plan import Plan, plan
from concertormer_jax.system_memory import require_memory
from concertormer_jax.terminal import printable

_MOST_NAMED = 50  # files that are left out are named up to this number
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
    return side_by_side([_bytes(before), _bytes(after)], ["before", "after"])


def _bytes(rgb):
    return np.rint(255 * rgb).astype(np.uint8)


def _write_page(work, outcome):
    done = [job for job in work.jobs if job.after in set(outcome.restored)]
    shown = done[:PAGE_PICTURES]
    note = f"the first {len(shown)} of {len(done)} pictures" if len(done) > len(shown) else ""
    pictures = (
        Compared(printable(job.before.name), *(_bytes(read_photo(path).rgb) for path in (job.before, job.after)))
        for job in shown
    )
    write_comparison(work.page, "Before and after", pictures, note=note)
    print(printable(f"{work.page}: before and after under a slider; it opens in any browser"))


def _closing_lines(work: Plan, outcome: Outcome) -> list[str]:
    """What to say at the end: what of the folder was left out, and every picture that failed."""
    lines = []
    if work.left_out:
        names = ", ".join(str(path) for path in work.left_out[:_MOST_NAMED])
        more = f" and {len(work.left_out) - _MOST_NAMED} more" if len(work.left_out) > _MOST_NAMED else ""
        lines.append(f"left out {len(work.left_out)} files whose names are not those of pictures: {names}{more}")
    if work.hidden:
        lines.append(f"left out {work.hidden} hidden files")
    if work.deeper:
        lines.append(f"left out {work.deeper} pictures in subfolders; --recursive takes them too")
    if outcome.failed:
        lines.append(f"error: {len(outcome.failed)} of {len(work.jobs)} pictures could not be restored:")
        lines += [f"  {reason}" for reason in outcome.failed.values()]
    return lines


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m concertormer_jax.restore", description=__doc__)
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="checkpoint, training folder or weights file")
    parser.add_argument("input", metavar="IN", help=f"a picture ({READABLE}) or a folder of them")
    parser.add_argument("output", metavar="OUT", help="the result's name, whose suffix decides its format, or a folder")
    parser.add_argument(
        "--tile", default="auto", metavar="PIXELS", help="tile size, a multiple of 64; auto; off for none"
    )
    parser.add_argument("--tlc", default="auto", metavar="auto|off|N", help="window of the test-time local converter")
    parser.add_argument("--recursive", action="store_true", help="of a folder, also the pictures in its subfolders")
    parser.add_argument("--compare", action="store_true", help="also write before and after, as pictures and as a page")
    flags = parse_arguments(parser, arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells of every file otherwise
    with reported():
        prepare_to_compile()
        # Paths are checked before the checkpoint is read.
        work = plan(flags.input, flags.output, compare=flags.compare, recursive=flags.recursive)
        restorer = Restorer(load_model(user_path(flags.ckpt, "--ckpt")), tlc=flags.tlc, tile=flags.tile)
        outcome = restore_files(restorer, work)
        if work.page and outcome.restored:
            _write_page(work, outcome)
        for line in _closing_lines(work, outcome):
            print(printable(line), file=sys.stderr)
        if outcome.failed:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
