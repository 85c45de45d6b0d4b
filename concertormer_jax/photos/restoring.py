"""Restoring files: what a call is to do, known before it begins, and doing it, one picture after the other."""

import collections
import contextlib
import dataclasses
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from concertormer_jax.data.images import IMAGE_SUFFIXES, image_size
from concertormer_jax.data.listing import is_leftover
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.photos.photo_io import FORMATS, losses, output_format, read_photo, require_fits, write_photo
from concertormer_jax.photos.sheets import side_by_side
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.memory import require_memory
from concertormer_jax.runtime.outputs import key_of_results, require_separate, require_writable
from concertormer_jax.runtime.paths import local_path

PAGE_FILE = "comparison.html"
_BYTES_PER_PIXEL = 44  # beside the picture itself: the result, and what is made of it to be written


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture, where its result goes, and where before and after side by side go, if anywhere."""

    before: Path
    after: Path
    comparison: Path | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that one call does.

    page: where the page with all comparisons goes, if anywhere. left_out: files in the folder that are no pictures by
    their names; hidden: how many more have hidden names. deeper: how many pictures lie in subfolders that were not
    asked for.
    """

    jobs: tuple[Job, ...]
    left_out: tuple[Path, ...] = ()
    hidden: int = 0
    deeper: int = 0
    page: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that get results."""
        return tuple(dict.fromkeys(job.after.parent for job in self.jobs))


def plan(source, destination, *, compare=False, recursive=False) -> Plan:
    """Plan the restoration of the picture `source` to `destination`, or of the pictures in the folder `source`.

    A picture may also go into a folder that exists or ends in `/`; in folders it keeps its name, with the suffix .png
    if its format is not written. recursive: also those in subfolders, into subfolders of the same names.
    Raises UserError if a path is missing or of the wrong kind, and if two results would be one file or a result an
    original.
    """
    into_folder = str(destination).endswith(os.sep)
    source, destination = local_path(source, "IN"), local_path(destination, "OUT")
    if source.is_dir():
        work = _folder(source, destination, recursive)
    elif source.exists() or source.is_symlink():
        after = destination / _result_name(source) if into_folder or destination.is_dir() else destination
        output_format(after)
        work = Plan((Job(source, after),))
    else:
        raise UserError(f"{source}: no such picture or folder; check the path.")
    work = dataclasses.replace(work, jobs=_with_distinct_results(work.jobs, compare, key_of_results(destination)))
    if compare:
        first = work.jobs[0].after
        page = destination / PAGE_FILE if source.is_dir() else first.with_name(f"{first.stem}_compare.html")
        work = dataclasses.replace(work, page=page)
    outputs = [path for job in work.jobs for path in (job.after, job.comparison) if path]
    require_separate(outputs, [job.before for job in work.jobs])
    return work


def _folder(source, destination, recursive):
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination}: is a file, but {source} is a folder; name a folder for the results.")
    if destination.exists() and destination.samefile(source):
        raise UserError(f"{destination}: would overwrite the originals; name another folder for the results.")
    pictures, left_out, hidden, deeper = [], [], 0, 0
    for folder, names in _files_below(source, destination, recursive):
        shown = [name for name in names if not name.startswith(".")]
        found = {name for name in shown if Path(name).suffix.lower() in IMAGE_SUFFIXES and not is_leftover(name)}
        if folder != source and not recursive:
            deeper += len(found)
            continue
        hidden += len(names) - len(shown)
        pictures += [folder / name for name in shown if name in found]
        left_out += [folder / name for name in shown if name not in found]
    if not pictures:
        hint = f"; {deeper} are in subfolders, which --recursive takes" if deeper else ""
        raise UserError(
            f"{source}: holds no pictures{hint}; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    jobs = tuple(Job(path, destination / path.relative_to(source).parent / _result_name(path)) for path in pictures)
    return Plan(jobs, tuple(left_out), hidden, deeper)


def _files_below(source, destination, strict):
    """Yield `source` and the folders below it, sorted, with the names of their files, but no hidden folders.

    strict: whether a folder below that cannot be listed is an error.
    """
    visited = {os.path.realpath(destination)}

    def unlisted(error):
        if strict or error.filename == str(source):
            raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); change its mode or owner.")

    for folder, children, names in os.walk(source, followlinks=True, onerror=unlisted):
        if os.path.realpath(folder) in visited:  # a link to a folder that was already listed, possibly to a parent
            children.clear()
            continue
        visited.add(os.path.realpath(folder))
        children[:] = sorted(child for child in children if not is_leftover(child))
        yield Path(folder), sorted(names)


def _result_name(path):
    return path.name if path.suffix.lower() in FORMATS else f"{path.stem}.png"


def _with_distinct_results(jobs, compare, key):
    """Give every result a name of its own: one that is not its picture's gets the suffix of that, if need be."""
    comparisons = [job.after.with_name(f"{job.after.stem}_compare.png") if compare else None for job in jobs]
    wanted = collections.Counter(key(path) for path in [*(job.after for job in jobs), *comparisons] if path)
    distinct = []
    for job, comparison in zip(jobs, comparisons, strict=True):
        after, stem = job.after, f"{job.before.stem}_{job.before.suffix[1:]}"
        if wanted[key(after)] > 1 and after.name != job.before.name and len(jobs) > 1:
            after = after.with_name(f"{stem}.png")
        if comparison and wanted[key(comparison)] > 1:
            comparison = after.with_name(f"{stem}_compare.png")
        distinct.append(Job(job.before, after, comparison))
    return tuple(distinct)


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
    say(f"{job.after}: {width}x{height}, {tiles}, {restorer.device.device_kind}, {seconds:.1f} s")


def _about_its_name(path, photo):
    named = FORMATS.get(path.suffix.lower(), photo.file_format)
    return () if photo.file_format in (named, "MPO") else (f"is a {photo.file_format} by its content.",)


def _comparison(before, after) -> Image.Image:
    return side_by_side([as_bytes(before), as_bytes(after)], ["before", "after"])


def as_bytes(rgb: np.ndarray) -> np.ndarray:
    """Return [H, W, 3] in [0, 1] as uint8 from 0 to 255, rounded."""
    return np.rint(255 * rgb).astype(np.uint8)
