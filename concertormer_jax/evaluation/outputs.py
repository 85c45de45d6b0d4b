"""Where results go."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from concertormer_jax.errors import UserError


def require_writable(folder) -> None:
    """Make `folder` if need be and raise UserError unless files can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder for results.") from error


def require_not_inputs(outputs: Iterable, inputs: Iterable) -> None:
    """Raise UserError if one of `outputs` is one of the files `inputs`, by whatever name, or cannot be a file."""
    originals = {_identity(path): path for path in inputs}
    originals.pop(None, None)
    for path in outputs:
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder; name another place for the result.")
        if original := originals.get(_identity(path)):
            raise UserError(f"{path}: would overwrite the original, {original}; name another place for the result.")


def restored_path(output, name: str) -> Path:
    """Return where the evaluator writes the restored picture of the pair `name`."""
    return Path(output) / "restored" / f"{name}.png"


def _identity(path):
    """What is the same for all names of one file, links included; None for a file that is not there."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be used ({error.strerror}); name another place.") from error
    return found.st_dev, found.st_ino
