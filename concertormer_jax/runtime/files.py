"""Files that are either whole or absent, locks that one process holds, and errors of writing that say what to do."""

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path

from etils import epath

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath, is_remote

_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_REMEDIES = {
    errno.ENOSPC: "free some space there or name another folder",
    errno.EDQUOT: "free some of your space there or name another folder",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or name a folder on another disk",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "change its mode or owner, or name another folder",
    errno.EPERM: "change its mode or owner, or name another folder",
    errno.EIO: "check the disk or the network drive, or name another folder",
    errno.ENAMETOOLONG: "give it a shorter name",
}


@contextlib.contextmanager
def written_atomically(path: AnyPath) -> Generator[Path]:
    """Yield a temporary path beside `path` with its suffix; move it to `path` when the block succeeds, else remove it.

    Missing parent folders are made. The content is flushed to the disk before the move.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name takes only the beginning of the stem, as a file's name may be at its longest already.
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
        # The system's errors of writing name no file, or the temporary one.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise with_remedy(OSError(error.errno, error.strerror), path) from error
        raise


def write_text(path: AnyPath, text: str) -> None:
    """Write `text` to `path`, which may be in a bucket, atomically, as UTF-8.

    Bytes of names that are not UTF-8 become escapes (`\\udcff`).
    """
    if is_remote(path):
        # A bucket shows an object when all of it has arrived.
        epath.Path(path).write_bytes(text.encode("utf-8", "backslashreplace"))
        return
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def locked(path: AnyPath, refusal: str) -> Generator[None]:
    """Hold the lock file `path`, whose folder is made if need be; the system releases it however this process ends.

    In a bucket and on file systems that cannot lock files, nothing is done. Raises UserError when another process
    holds the lock: `refusal`, in which {holder} stands for that process.
    """
    if is_remote(path):
        yield
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise UserError(refusal.replace("{holder}", holder)) from error
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def with_remedy(error: OSError, path: AnyPath) -> OSError:
    """Return `error` with what to do in its text, and with `path` as its file's name if it names none."""
    remedy = _REMEDIES.get(error.errno or 0, "name another folder")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno or errno.EIO, f"{reason}; {remedy}", str(error.filename or path))


def as_os_error(error: Exception, path: AnyPath) -> OSError:
    """Return an exception that a library raised when it wrote `path` as the operating system's error it stems from."""
    known = (number for number in _REMEDIES if os.strerror(number) in str(error))
    return with_remedy(OSError(next(known, errno.EIO), str(error)), path)
