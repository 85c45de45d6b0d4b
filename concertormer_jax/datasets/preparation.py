"""Preparing a set: its pairs are found, checked and written. The folder gets its name only when it is complete."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from concertormer_jax.data.prepared import default_data_dir
from concertormer_jax.datasets.descriptions import SETS, SetDescription, Variant
from concertormer_jax.datasets.layouts import Found, find
from concertormer_jax.datasets.verify import Report, check
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import locked, with_remedy
from concertormer_jax.runtime.outputs import require_writable
from concertormer_jax.runtime.paths import AnyPath, checked_part, local_path

_INCOMPLETE = "incomplete."  # with this begin the folders that tensorflow-datasets is writing


def described(reference: str) -> tuple[SetDescription, Variant]:
    """Return the set and configuration that NAME or NAME/CONFIG names. Raises UserError, with a list, for others."""
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


def examine(reference: str, source: AnyPath) -> tuple[Found, Report]:
    """Find and check the pairs of the set `reference` below `source`, without writing anything."""
    description, variant = described(reference)
    found = find(description, variant, source)
    return found, check(description, found)


def require_preparable(reference: str, data_dir: str = "") -> None:
    """Raise UserError, and write nothing, where `prepare` would refuse `data_dir`: the checks before it take hours."""
    _, folder = _place(reference, data_dir)
    require_writable(next(path for path in folder.parents if os.path.lexists(path)))


def prepare(reference: str, report: Report, data_dir: str = "") -> Path:
    """Write the pairs of `report` as a prepared set below `data_dir` ("": the default place); return its folder.

    It first removes the files of an interrupted preparation. Raises UserError if the report has errors, the set is
    prepared already, another process is preparing it, or `data_dir` is no local folder or has no room for it, and
    OSError, with the file's name and what to do, for a file that cannot be read or written.
    """
    description, variant = described(reference)
    if report.errors:
        raise UserError(f"{description.title} has {len(report.errors)} errors, the first one: {report.errors[0]}")
    import tensorflow_datasets as tfds  # slow, and not needed for checks

    from concertormer_jax.datasets.builders import make_builder

    data_dir, folder = _place(reference, data_dir)
    refusal = f"{folder.parent}: {{holder}} is preparing this set; wait for it or end it."
    with _remedies(folder), locked(folder.parent / ".preparing", refusal):
        _place(reference, data_dir)  # which may have been prepared meanwhile
        _remove_incomplete(folder)
        _require_space(folder.parent, report)
        builder = make_builder(description.name, variant, data_dir)
        builder.checked = report
        # tensorflow-datasets makes a download folder and prints that it downloads, though nothing is fetched.
        with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
            settings = tfds.download.DownloadConfig(manual_dir=unused, try_download_gcs=False)
            builder.download_and_prepare(download_dir=unused, download_config=settings)
    return folder


def _place(reference: str, data_dir: str) -> tuple[str, Path]:
    """The folder of prepared sets, and that of this set, which is not there. Raises UserError if it is."""
    from concertormer_jax.datasets.builders import BUILDERS  # slow, and not needed for checks

    description, variant = described(reference)
    data_dir = os.fspath(local_path(data_dir or default_data_dir(), "--data-dir"))
    folder = Path(data_dir, description.name, variant.name, str(BUILDERS[description.name].VERSION))
    if folder.exists():  # tensorflow-datasets would take whatever is there for the prepared set
        raise UserError(f"{folder}: is prepared already; delete it to prepare it again.")
    return data_dir, folder


@contextlib.contextmanager
def _remedies(folder: Path) -> Generator[None]:
    """Add what to do to the operating system's errors, and `folder` to those that name no file."""
    try:
        yield
    except OSError as error:
        raise with_remedy(error, folder) from error


def _require_space(folder: Path, report: Report) -> None:
    """Raise UserError unless the disk of `folder` has room for the files of the pairs, which are copied unchanged."""
    needed, free = sum(part.bytes for part in report.splits.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: has room for {free / 2**20:,.1f} MiB but the pictures take {needed / 2**20:,.1f} MiB; free "
            "some space there or name another folder with --data-dir=DIR."
        )


def _remove_incomplete(folder: Path) -> None:
    for left in folder.parent.glob(f"{_INCOMPLETE}*_{folder.name}"):
        shutil.rmtree(left)
