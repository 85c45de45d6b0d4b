"""How a command ends that cannot go on: the failures that a user can cause, and the signals that ask it to stop."""

import contextlib
import os
import signal
import sys
import threading

from concertormer_jax.runtime import threads

# Text that may come from foreign files or names, on its way to the terminal.


def printable(text: str) -> str:
    """Return `text` with every character that a terminal could act on, or not print, written as an escape (`\\x1b`).

    That is control and formatting characters, line ends, and bytes of file names that are no text.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


STOPPING = (signal.SIGINT, signal.SIGTERM)
OWN_PROCESS = threading.Event()  # set where a command is all that this process does
_CLOUD = ("tensorflow", "google")  # whose clients of buckets raise kinds of their own


class UserError(ValueError):
    """A failure that the user can mend; its message is one sentence that says how."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked this process to end. text: what to say, such as what is saved."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(text)
        self.number, self.text = number, text or f"stopped by {signal.Signals(number).name}"


@contextlib.contextmanager
def reported():
    """Turn a `UserError` in a command into `error: ...` on stderr and exit status 2.

    Files that cannot be read or written (`OSError`: permission, disk full, missing) are reported in the same way,
    since the operating system's message names the file and the reason, and so is what a bucket's client raises.
    Ctrl-C and SIGTERM end the command with one sentence and the status that a shell gives to them, 130 and 143.
    Characters of names that a terminal would act on are shown as escapes.
    """
    with _signals_raise():
        try:
            yield
        except UserError as error:
            _end(2, f"error: {error}", error)
        except OSError as error:
            _end(2, f"error: {f'{error.filename}: {error.strerror}' if error.filename else error}", error)
        except Stopped as stop:
            _end(128 + stop.number, stop.text, stop)
        except KeyboardInterrupt as interrupt:
            _end(128 + signal.SIGINT, Stopped(signal.SIGINT).text, interrupt)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _CLOUD:
                raise
            _end(2, f"error: {' '.join(str(error).split())}", error)


@contextlib.contextmanager
def _signals_raise():
    """Have SIGINT and SIGTERM raise `Stopped`, so that what is open is closed and temporary files are removed."""

    def stop(number, _):
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread alone
        return
    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(status: int, text: str, cause: BaseException):
    print(printable(text), file=sys.stderr, flush=True)
    # A compiler at work would crash where the process takes down what it uses.
    if OWN_PROCESS.is_set() and threads.busy():
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status) from cause
