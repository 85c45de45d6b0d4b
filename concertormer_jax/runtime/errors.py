"""How a command ends that cannot go on: with one sentence, at a failure the user can mend or at a signal.

`UserError` is the failure, `Stopped` the signal, `reported` turns both into a sentence on stderr and an exit status.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import NoReturn

from concertormer_jax.runtime import threads

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OWN_PROCESS = threading.Event()  # set where a command is all that this process does
_CLOUD = ("tensorflow", "google")  # packages whose clients of buckets raise exceptions of their own


class UserError(ValueError):
    """A failure that the user can mend; its message is one sentence that says how."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked this process to end. text: what to say, such as what is saved."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(text)
        self.number, self.text = number, text or f"stopped by {signal.Signals(number).name}"


def printable(text: str) -> str:
    """Return `text` with every character that a terminal acts on or cannot print written as an escape (`\\x1b`).

    These are control and formatting characters, line ends, and bytes of file names that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def exit_on_signals() -> None:
    """End this process with one sentence at SIGINT or SIGTERM, until `reported` takes over.

    A process that runs one command and nothing else calls this before it imports the command, which takes seconds.
    """
    OWN_PROCESS.set()
    for number in STOP_SIGNALS:
        signal.signal(number, _exit_at_once)


def _exit_at_once(number: int, _: FrameType | None) -> NoReturn:
    end_at_once(128 + number, Stopped(number).text)  # the command has written nothing yet


def end_at_once(status: int, text: str) -> NoReturn:
    """Say `text` on stderr and end this process, without waiting for threads or other processes."""
    print(printable(text), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def reported() -> Generator[None]:
    """Turn a `UserError` in a command into `error: ...` on stderr and exit status 2.

    An `OSError` (permission, disk full, missing file) is reported in the same way, since the operating system's message
    names the file and the reason; so is what a bucket's client raises. SIGINT (Ctrl-C) and SIGTERM end the command with
    one sentence and the status that a shell gives to them, 130 and 143. The message is made `printable`.
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
def _signals_raise() -> Generator[None]:
    """Have SIGINT and SIGTERM raise `Stopped`, so that files are closed and temporary ones removed."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread alone
        return
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(status: int, text: str, cause: BaseException) -> NoReturn:
    # The compiler in a background thread would crash while the interpreter shuts down.
    if OWN_PROCESS.is_set() and threads.busy():
        end_at_once(status, text)
    print(printable(text), file=sys.stderr, flush=True)
    raise SystemExit(status) from cause
