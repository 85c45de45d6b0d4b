"""Ctrl-C and SIGTERM while a command is still importing what it needs, which takes seconds.

A command imports this module first. Inside `errors.reported` other handlers take over.
"""

import os
import signal
import sys
from pathlib import Path

from concertormer_jax.errors import OWN_PROCESS, STOPPING, Stopped

_PACKAGE = Path(__file__).parent


def _leave(number, _):
    print(Stopped(number).text, file=sys.stderr, flush=True)
    os._exit(128 + number)  # nothing was begun


def _is_command(file: str | None) -> bool:
    """Whether `file`, which this process runs, is a command of this software: in the package or beside it."""
    if file is None:
        return False
    path = Path(file).resolve()
    return _PACKAGE in path.parents or path.parent == _PACKAGE.parent


if _is_command(getattr(sys.modules["__main__"], "__file__", None)):
    OWN_PROCESS.set()
    for _number in STOPPING:
        signal.signal(_number, _leave)
