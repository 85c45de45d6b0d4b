"""What the operating system says of a file that cannot be written, with the file's name and what to do."""

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from pathlib import Path

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import is_remote

# Files that are either whole or absent, and folders that one process holds.

_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


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
    """Write `text` to `path`, which may be in a bucket, atomically, as UTF-8.

    Bytes of names that are no text become escapes (`\\udcff`).
    """
    if is_remote(path):
        # A bucket shows an object when all of it has arrived.
        path.write_bytes(text.encode("utf-8", "backslashreplace"))
        return
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def locked(path, refusal: str):
    """Hold the lock file `path`, whose folder is made if need be; it ends with this process, however that ends.

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


def explained(error: OSError, path) -> OSError:
    """Return `error` with the name of the file, `path` if it has none itself, and what to do in its text."""
    remedy = _REMEDIES.get(error.errno, "name another folder")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno or errno.EIO, f"{reason}; {remedy}", str(error.filename or path))


def written_error(error: Exception, path) -> OSError:
    """Return what a library that raises its own kinds says of writing `path` as the operating system's error."""
    known = (number for number in _REMEDIES if os.strerror(number) in str(error))
    return explained(OSError(next(known, errno.EIO), str(error)), path)
