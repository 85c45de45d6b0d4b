"""Where results go."""

import tempfile
from pathlib import Path

from concertormer_jax.errors import UserError
from concertormer_jax.paths import is_remote, local_path, user_path


def results_path(output: str | None, ckpt: str, *default: str) -> Path:
    """Where a command's results go: --output, else `default` in the folder --ckpt, or in one beside a weights file.

    Raises UserError when that is not on this machine.
    """
    if output is not None:
        return local_path(output, "--output")
    folder = user_path(ckpt, "--ckpt")
    if is_remote(folder):
        raise UserError(f"{folder} is in a bucket and results are written on this machine; give a folder by --output")
    if folder.exists() and not folder.is_dir():
        folder = folder.with_name(f"{folder.stem}-results")
    return Path(folder, *default)


def require_writable(folder) -> None:
    """Make `folder` if need be and raise UserError unless files can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder for results.") from error


def require_file_writable(path) -> None:
    """Make the folder of `path` if need be and raise UserError unless `path` can be written as a file."""
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder; name a file for the result.")
    require_writable(Path(path).parent)


def restored_path(output, name: str) -> Path:
    """Return where the evaluator writes the restored picture of the pair `name`."""
    return Path(output) / "restored" / f"{name}.png"
