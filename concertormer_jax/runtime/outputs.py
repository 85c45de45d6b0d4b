"""Where results go: their default places, refusals of places that cannot or must not be written, and charts."""

import importlib.util
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import HUB, AnyPath, is_bundled, is_remote, local_path, user_path


def results_path(output: str | None, ckpt: AnyPath, *default: str) -> Path:
    """Return where a command's results go: --output, else `default` in the folder --ckpt or beside a weights file.

    For the weights that come with this software it is `default` in the folder "results" where the command runs.

    Raises UserError when that is not on this machine.
    """
    if output is not None:
        return local_path(output, "--output")
    if is_bundled(ckpt):
        return Path("results", *default)
    if os.fspath(ckpt).startswith(HUB):
        raise UserError(f"{ckpt} is on the Hub and results are written on this machine; give a folder by --output")
    folder = user_path(ckpt, "--ckpt")
    if is_remote(folder):
        raise UserError(f"{folder} is in a bucket and results are written on this machine; give a folder by --output")
    if folder.exists() and not folder.is_dir():
        folder = folder.with_name(f"{folder.stem}-results")
    return Path(folder, *default)


def require_writable(folder: AnyPath) -> None:
    """Make `folder` if need be and raise UserError unless files can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{folder}: cannot be written ({reason}); name another folder for results.") from error


def require_separate(outputs: Iterable[AnyPath], inputs: Iterable[AnyPath]) -> None:
    """Raise UserError if two of `outputs` are the same file, or one is a folder or the same file as one of `inputs`."""
    originals = {_identity(path): path for path in inputs}
    originals.pop(None, None)
    outputs = [Path(path) for path in outputs]
    key, taken = key_of_results(outputs[0].parent), set()
    for path in outputs:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name another place for the result.")
        if original := originals.get(_identity(path)):
            raise UserError(f"{path}: would overwrite the original, {original}; name another place for the result.")
        if key(path) in taken:
            raise UserError(f"{path}: two results would have this name; rename one of the pictures that they are of.")
        taken.add(key(path))


def require_outside(results: AnyPath, pictures: AnyPath) -> None:
    """Raise UserError if the folder `results` is `pictures` or lies in it: the next command would take both for one."""
    inner, outer = (Path(os.path.realpath(path)) for path in (results, pictures))
    if outer in (inner, *inner.parents):
        raise UserError(
            f"{results}: lies in the folder of pictures {pictures}, whose pictures those of the results would be taken "
            "for; name a folder for results elsewhere."
        )


def key_of_results(folder: Path) -> Callable[[Path], str]:
    """Return a function that gives one text for all paths that the disk of `folder` takes for the same file.

    Some disks do not tell upper from lower case, nor the Unicode forms of one letter.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if _tells_case_apart(existing):
        return lambda path: os.path.join(os.path.realpath(path.parent), path.name)
    return lambda path: unicodedata.normalize("NFC", os.path.join(os.path.realpath(path.parent), path.name)).casefold()


def require_file_writable(path: AnyPath) -> None:
    """Make the folder of `path` if need be and raise UserError unless `path` can be written as a file."""
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder; name a file for the result.")
    require_writable(Path(path).parent)


def _identity(path: AnyPath) -> tuple[int, int] | None:
    """Device and inode of a file, which are the same for all its names, links included; None for a missing file."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be used ({error.strerror}); name another place.") from error
    return found.st_dev, found.st_ino


def _tells_case_apart(folder: Path) -> bool:
    try:
        with tempfile.NamedTemporaryFile(prefix=".case", dir=folder) as file:
            return not Path(file.name).with_name(Path(file.name).name.swapcase()).exists()
    except OSError:  # `require_writable` refuses such a folder
        return True


def charts_installed() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def require_drawable(flag: str, path: AnyPath) -> None:
    """Raise UserError without matplotlib, for a suffix that it cannot write, and where `path` cannot be written."""
    known = pyplot(flag).Figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in known:
        raise UserError(f"{flag}={path}: must end in one of .{', .'.join(sorted(known))}")
    require_file_writable(path)


def pyplot(user: str) -> ModuleType:
    """Return matplotlib's pyplot, set to draw into files. Raises UserError, naming `user`, if it is not installed."""
    if not charts_installed():
        raise UserError(f"{user} needs matplotlib; install it with: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
