"""What the operating system says of a file that cannot be written, with the file's name and what to do."""

import errno
import os

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
