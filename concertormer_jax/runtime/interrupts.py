"""Ctrl-C and SIGTERM while a command is still importing what it needs, which takes seconds."""

import os
import signal
import sys

from concertormer_jax.runtime.errors import OWN_PROCESS, STOPPING, Stopped


def listen() -> None:
    """End this process with one sentence at a signal, until `errors.reported` takes over.

    To be called by a process that runs one command and nothing else, before the command is imported.
    """
    OWN_PROCESS.set()
    for number in STOPPING:
        signal.signal(number, _leave)


def _leave(number, _):
    print(Stopped(number).text, file=sys.stderr, flush=True)
    os._exit(128 + number)  # nothing was begun
