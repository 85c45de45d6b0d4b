"""Preparing a set: found, checked, written. What is not whole never has the name of a prepared set."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from concertormer_jax.data.folders import Pair, find_pairs
from concertormer_jax.data.prepared import (
    PREFIX,
    TRAINING_SPLITS,
    default_data_dir,
    open_prepared,
    prepared_folder,
    read_pairs_file,
)
from concertormer_jax.data.sources import PairSource
from concertormer_jax.datasets.descriptions import SETS, SetDescription, Variant
from concertormer_jax.datasets.layouts import Found, find, sets_in
from concertormer_jax.datasets.sidd_blocks import SiddBlocks
from concertormer_jax.datasets.verify import Report, check
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import locked, with_remedy
from concertormer_jax.runtime.paths import checked_part, local_path

_INCOMPLETE = "incomplete."  # how tensorflow-datasets calls the folders that it is writing


def described(reference: str) -> tuple[SetDescription, Variant]:
    """Return what NAME or NAME/CONFIG stands for. Raises UserError for an unknown one, with those there are."""
    name, _, config = reference.partition("/")
    if name not in SETS:
        raise UserError(f"{reference}: there is no set {name!r}; choose one of {', '.join(SETS)}.")
    if config:
        checked_part(config, reference)
    variant = SETS[name].variant(config)
    if variant is None:
        choices = ", ".join(f"{name}/{one.name}" for one in SETS[name].variants if one.name) or name
        raise UserError(f"{reference}: {name} has no configuration {config!r}; choose one of {choices}.")
    return SETS[name], variant


def examine(reference: str, source) -> tuple[Found, Report]:
    """Find and check the pairs of the set `reference` below `source`, without writing anything."""
    description, variant = described(reference)
    found = find(description, variant, source)
    return found, check(description, found)


def prepare(reference: str, report: Report, data_dir: str = "") -> Path:
    """Write the pairs of `report` as a prepared set below `data_dir` ("": the default place); return its folder.

    Whatever an interrupted preparation left is removed first. Raises UserError if the report has errors, the set is
    prepared already, another process is preparing it, or `data_dir` is no local folder or has no room for it, and
    OSError, with the file's name and what to do, for one that cannot be read or written.
    """
    description, variant = described(reference)
    data_dir = os.fspath(local_path(data_dir or default_data_dir(), "--data-dir"))
    if report.errors:
        raise UserError(f"{description.title} has {len(report.errors)} errors, the first one: {report.errors[0]}")
    import tensorflow_datasets as tfds  # slow, and not needed for checks

    from concertormer_jax.datasets.builders import BUILDERS, make_builder

    folder = Path(data_dir, description.name, variant.name, str(BUILDERS[description.name].VERSION))
    refusal = f"{folder.parent}: {{holder}} is preparing this set; wait for it or end it."
    with _failures_named(folder), locked(folder.parent / ".preparing", refusal):
        if folder.exists():  # asked before tensorflow-datasets looks into it, which believes what it finds
            raise UserError(f"{folder}: is prepared already; delete it to prepare it again.")
        _remove_incomplete(folder)
        _require_space(folder.parent, report)
        builder = make_builder(description.name, variant, data_dir)
        builder.checked = report
        # The pictures are on the disk and nothing is fetched, whatever tensorflow-datasets says and makes room for.
        with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
            settings = tfds.download.DownloadConfig(manual_dir=unused, try_download_gcs=False)
            builder.download_and_prepare(download_dir=unused, download_config=settings)
    return folder


@contextlib.contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """Say which file could not be read or written and what to do; that of `folder` where the system names none."""
    try:
        yield
    except OSError as error:
        raise with_remedy(error, folder) from error


def _require_space(folder: Path, report: Report) -> None:
    """Raise UserError unless the disk of `folder` has room for the files of the pairs, which are kept as they are."""
    needed, free = sum(part.bytes for part in report.splits.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: has room for {free / 2**20:,.1f} MiB but the pictures take {needed / 2**20:,.1f} MiB; free "
            "some space there or name another folder with --data-dir=DIR."
        )


def _remove_incomplete(folder: Path) -> None:
    for left in folder.parent.glob(f"{_INCOMPLETE}*_{folder.name}"):
        shutil.rmtree(left)


# The pairs that an evaluation is asked for: of a prepared set, a folder in any known layout, or any other pairs.


def open_evaluation_sets(data: str, data_dir: str = "") -> tuple[str | None, dict]:
    """Return (name of the set, None for pairs of no known set; {split or folder: source}).

    data: "tfds:NAME" or "tfds:NAME/CONFIG" below `data_dir`, of which all splits but those for training are opened; a
    folder of one of the known sets in any of its layouts, likewise; or any other folder of pairs (`find_pairs`).
    Raises UserError if there is nothing to evaluate, or several sets.
    """
    if data.startswith(PREFIX):
        return _prepared(data.removeprefix(PREFIX), data_dir)
    names = sets_in(data)
    if len(names) > 1:
        raise UserError(f"{data}: holds {', '.join(sorted(names))}; give the folder of one of them.")
    if not names:
        return None, {Path(data).resolve().name: PairSource(find_pairs(data))}
    (name,) = names
    description = SETS[name]
    found = find(description, description.variants[0], data)
    if found.unpaired:
        raise UserError(found.unpaired[0])
    sources = {
        split: _source(items)
        for split, items in found.pairs.items()
        # Training pairs are evaluated if they lie in the folder itself, not below one that says what it is for.
        if split not in TRAINING_SPLITS or found.places[split].startswith("./")
    }
    if not sources:
        raise UserError(f"{data}: has training pairs of {description.title} but none of a test set.")
    return name, sources


def _prepared(reference: str, data_dir: str) -> tuple[str | None, dict]:
    splits = list(read_pairs_file(prepared_folder(reference, data_dir))["pairs"])
    tests = [split for split in splits if split not in TRAINING_SPLITS]
    if not tests:
        raise UserError(f"{PREFIX}{reference}: has training pairs alone; prepare it from a folder with its test set.")
    return known_set(reference), {split: open_prepared(reference, split, data_dir=data_dir) for split in tests}


def known_set(reference: str) -> str | None:
    """Return the name of the known set that NAME or NAME/CONFIG is of; None for pairs of the user's own."""
    name = reference.partition("/")[0]
    return None if name not in SETS or SETS[name].free_names else name


def _source(items):
    if isinstance(items[0], Pair):
        return PairSource(items)
    blocks: SiddBlocks = items[0].blocks
    return blocks
