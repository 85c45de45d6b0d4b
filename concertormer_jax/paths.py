"""Paths that a user gives: local ones, with `~` or relative, and buckets.

Every path from a flag, a config or the environment goes through `user_path`, or through `local_path` where a bucket
will not do.
"""

import os
import posixpath
import re
from pathlib import Path

from etils import epath

from concertormer_jax.errors import UserError

BUCKET = "gs://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def is_remote(path) -> bool:
    """Whether `path` is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def user_path(text, name: str = "") -> epath.Path:
    """The absolute path that `text` stands for: gs://BUCKET/..., or a local one with `~` expanded.

    name: the flag or key that gave it, for messages. Raises UserError for an empty path, another scheme than gs://, a
    bucket without a name and an unknown user behind `~`.
    """
    text = os.fspath(text)
    said = f"{name}={text}" if name else text
    if not text.strip():
        raise UserError(f"{name or 'a path'} is empty; name a folder or a file")
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


def local_path(text, name: str = "") -> Path:
    """Like `user_path`, for what must be on this machine. Raises UserError for a bucket too."""
    path = user_path(text, name)
    if is_remote(path):
        said = f"{name}={path}" if name else path
        raise UserError(f"{said}: must be on this machine; copy it here, or name a local path")
    return Path(path)
