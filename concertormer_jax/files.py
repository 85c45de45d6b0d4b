"""Files that are either whole or absent."""

import contextlib
import os
import tempfile
from pathlib import Path

from concertormer_jax.disk import explained


@contextlib.contextmanager
def written_atomically(path):
    """Yield a temporary path beside `path` with its suffix; move it to `path` when the block succeeds, else remove it.

    Missing parent folders are made. The content is flushed to the disk before the move.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The beginning of the name suffices to tell whose the file is, and a long name has no room for more.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:32]}-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        # Of the system's own errors, those of writing name no file, or the temporary one.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise explained(OSError(error.errno, error.strerror), path) from error
        raise


def write_text(path, text: str) -> None:
    """Write `text` to `path`, atomically, as UTF-8; bytes of names that are no text become escapes (`\\udcff`)."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
