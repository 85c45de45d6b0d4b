"""Walking through folders of pictures, without what cameras, phones, network drives and editors leave behind."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath

# Names of folders and files in lower case. Hidden ones (.DS_Store, ._photo.jpg, .thumbnails) count as well.
_LEFTOVERS = (
    r"@eadir|#recycle|#snapshot|@recycle|@recently-snapshot|@sharebin|@tmp",  # Synology, QNAP
    r"\$recycle\.bin|recycler|system volume information|found\.\d+|e?h?thumbs\.db.*|desktop\.ini",  # Windows
    r"__macosx|network trash folder|temporary items|icon\r",  # macOS
    r"lost\+found|__pycache__",  # Linux
    r"thumbnails?|thumbs|thmbnl|picasa\.ini|.*\.(aae|thm|lrv|xmp|lrdata|lrcat|ctg)",  # cameras, phones, photo managers
    r"~.*|#.*#|.*~|.*\.(bak|orig|tmp|swp|part|partial|crdownload)|.*\.sync-conflict-.*",  # editors, downloads, copies
)
_LEFTOVER = re.compile("|".join(_LEFTOVERS))


class Listed(NamedTuple):
    """A folder, the sorted names of the folders in it, and its sorted other entries."""

    path: Path
    folders: list[str]
    files: list[os.DirEntry]


def is_leftover(name: str) -> bool:
    """Return whether a folder or file of this name is hidden, or one that other software leaves beside the data."""
    return name.startswith(".") or _LEFTOVER.fullmatch(name.lower()) is not None


def walk(folder: AnyPath) -> Iterator[Listed]:
    """Yield `folder` and all folders below it, parents first, following links, each real folder once.

    Raises UserError naming a folder that is missing or cannot be read.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; check the path.")
    visited, waiting = set(), [Path(folder)]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in visited:  # a link to a folder that is listed already, such as a parent
            continue
        visited.add(real)
        try:
            with os.scandir(path) as found:
                entries = sorted((entry for entry in found if not is_leftover(entry.name)), key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); change its mode or owner.") from error
        folders = [entry.name for entry in entries if _is_folder(entry)]
        yield Listed(path, folders, [entry for entry in entries if not _is_folder(entry)])
        waiting += [path / name for name in reversed(folders)]


def find_file(folder: AnyPath, name: str) -> Path | None:
    """Return the first file called `name` in `folder` or below, None if there is none."""
    return next((place.path / name for place in walk(folder) for entry in place.files if entry.name == name), None)


def require_file(entry: os.DirEntry) -> None:
    """Raise UserError unless `entry` is a regular file or a link to one."""
    try:
        if entry.is_file():
            return
    except OSError:  # a link that leads to itself
        pass
    kind = "a link to nothing" if entry.is_symlink() else "a named pipe, a device or a socket"
    raise UserError(f"{entry.path}: is {kind} and no picture file; remove it.")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
