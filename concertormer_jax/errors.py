"""The one kind of failure that a user can cause, and how a command reports it."""

import contextlib
import sys

from concertormer_jax.terminal import printable


class UserError(ValueError):
    """A failure that the user can mend; its message is one sentence that says how."""


@contextlib.contextmanager
def reported():
    """Turn a `UserError` in a command into `error: ...` on stderr and exit status 2.

    Files that cannot be read or written (`OSError`: permission, disk full, missing) are reported in the same way,
    since the operating system's message names the file and the reason. Characters of names that a terminal would act
    on are shown as escapes.
    """
    try:
        yield
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(printable(f"error: {text}"), file=sys.stderr)
        raise SystemExit(2) from error
