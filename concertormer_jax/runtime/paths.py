"""Paths: what a user may give, the names that files may have, and the files that come with this software.

Every path from a flag, a config or the environment goes through `user_path`, or through `local_path` where a bucket
will not do. Every name from foreign data goes through `checked_name` before it becomes part of a path.
"""

import os
import posixpath
import re
import unicodedata
from pathlib import Path

from etils import epath

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.values import shown

AnyPath = str | os.PathLike[str]
BUCKET = "gs://"
HUB = "hf://"  # weights on the Hugging Face Hub, which are no paths: see weights/hub.py
BUNDLED = "bundled:"  # the scheme of the files that come with this software, such as bundled:photos/test
BUNDLED_WEIGHTS = f"{BUNDLED}weights/pocket.safetensors"
_PACKAGE = Path(__file__).parents[1]
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_LONGEST_NAME = 255  # bytes of a file's name, on nearly all file systems
_LONGEST_SUFFIX = ".png"  # of those that this software puts behind a name


def bundled(name: str) -> Path:
    """Return a file or folder that comes with this software, such as "photos/test" or "configs".

    pip puts it into the package's folder; in a clone it lies beside the package.
    """
    inside = _PACKAGE / "bundled" / name
    return inside if inside.exists() else _PACKAGE.parent / name


def recipes() -> dict[str, Path]:
    """Return the bundled recipes by name."""
    return {
        path.stem: path for path in sorted(bundled("configs").glob("*.py")) if path.stem not in ("__init__", "common")
    }


def is_bundled(path: AnyPath) -> bool:
    """Whether `path` names what comes with this software."""
    return os.fspath(path).startswith(BUNDLED)


def is_remote(path: AnyPath) -> bool:
    """Whether `path` is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def user_path(text: AnyPath, name: str = "") -> epath.Path:
    """Return the absolute path that `text` stands for: gs://BUCKET/..., bundled:NAME, or a local one with `~`.

    name: the flag or key that gave it, for messages. Raises UserError for an empty path, another scheme than gs://, a
    bucket without a name and an unknown user behind `~`.
    """
    text = os.fspath(text)
    said = f"{name}={text}" if name else text
    if not text.strip():
        raise UserError(f"{name or 'a path'} is empty; name a folder or a file")
    if is_bundled(text):
        return epath.Path(bundled(text.removeprefix(BUNDLED)))
    if scheme := _SCHEME.match(text):
        bucket, _, inside = text.removeprefix(BUCKET).partition("/")
        if not text.startswith(BUCKET) or not bucket:
            raise UserError(f"{said}: is no path that can be used here; give a local path or {BUCKET}BUCKET/FOLDER")
        inside = posixpath.normpath(f"/{inside}").lstrip("/")
        return epath.Path(f"{scheme[1]}://{bucket}", inside)
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{said}: there is no user {text.partition('/')[0]}; write ./{text} for a folder of that name")
    return epath.Path(os.path.abspath(expanded))


def local_path(text: AnyPath, name: str = "") -> Path:
    """Like `user_path`, for what must be on this machine. Raises UserError for a bucket too."""
    path = user_path(text, name)
    if is_remote(path):
        said = f"{name}={path}" if name else path
        raise UserError(f"{said}: must be on this machine; copy it here, or name a local path")
    return Path(path)


def checked_name(name: str, origin: object) -> str:
    """Return `name` if it can stand for a file below any folder: one or more parts between slashes, none of them `..`.

    origin: where the name comes from, for messages. Raises UserError for anything else: an absolute path, one that
    leads out of its folder, an empty or too long part, backslashes, control characters, bytes that are not UTF-8.
    """
    if isinstance(name, str):
        parts = name.split("/")
        longest = max(len(part.encode("utf-8", "surrogatepass")) for part in parts) + len(_LONGEST_SUFFIX)
        unprintable = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
        if not unprintable and longest <= _LONGEST_NAME and "\\" not in name and not {"", ".", ".."} & set(parts):
            return name
    raise UserError(f"{origin}: {shown(name)} is no name that a file can have here; rename it where it comes from.")


def checked_part(name: str, origin: object) -> str:
    """Return `name` like `checked_name`, if it is a single part. Raises UserError otherwise."""
    if "/" in checked_name(name, origin):
        raise UserError(f"{origin}: {shown(name)} is a path in place of a name; rename it where it comes from.")
    return name
