"""Walking through folders of pictures, without what cameras, phones, network drives and editors leave behind."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from concertormer_jax.runtime.errors import UserError

# Names that came with data, before they become paths.


# Digests of the data of a run, by which they are known again wherever they lie.

_READ = 8  # pictures or pairs of a set whose content counts, evenly spaced


def digest_of_files(named) -> dict:
    """Return `digest` of files. named: (name, path, ...) for every picture or pair."""
    named = list(named)
    rows = [[name, *(path.stat().st_size for path in paths)] for name, *paths in named]
    return digest(rows, lambda place: [path.read_bytes() for path in named[place][1:]])


def digest(rows: list, content_of) -> dict:
    """Return {"pictures": the number of rows, "digest": of all rows and of the content of some}.

    rows: a list for every picture or pair that JSON can hold, with its name and what is known of it without reading;
    content_of: place in `rows` to a list of bytes.
    """
    total = hashlib.sha256(json.dumps(rows).encode())
    for place in range(0, len(rows), max(1, len(rows) // _READ)):
        for content in content_of(place):
            total.update(hashlib.sha256(content).digest())
    return {"pictures": len(rows), "digest": total.hexdigest()}


# Of folders and files, in lower case; hidden names (.DS_Store, ._photo.jpg, .thumbnails) are left out as well.
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
    """A folder, the names of the folders in it, and its other entries; both sorted."""

    path: Path
    folders: list[str]
    files: list[os.DirEntry]


def is_leftover(name: str) -> bool:
    """Return whether a folder or file of this name is no data but was left behind by other software, or is hidden."""
    return name.startswith(".") or _LEFTOVER.fullmatch(name.lower()) is not None


def walk(folder) -> Iterator[Listed]:
    """Yield `folder` and all folders below it, parents first, following links, each real folder once.

    Raises UserError naming a folder that is missing or cannot be read.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; check the path.")
    visited, waiting = set(), [Path(folder)]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in visited:  # a link to a folder that was already listed, possibly to a parent
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


def find_file(folder, name: str) -> Path | None:
    """Return the first file called `name` in `folder` or below, None without one."""
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
