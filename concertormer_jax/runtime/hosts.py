"""The processes of one command on several hosts, which tell each other by files how far they are."""

import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import require_writable

_LOOK_S = 0.5
_VISIBLE_WITHIN_S = 90  # what one host wrote, to the others: network file systems cache listings for up to a minute


class Hosts:
    """The processes that share a command's work: `index` is this one's number of `count`. A context manager.

    folder: a folder that all of them see; a subfolder holds their messages. None: this process is alone, and nothing is
    written. All processes call the same methods in the same order. An error that leaves the context on one process
    ends it on all of them: the others raise a UserError that names the host and says why.
    Files are used in place of the devices' collective operations, as one host may wait for another for hours, and the
    failure of one must stop the others at once.
    """

    def __init__(self, folder=None):
        self.index, self.count, self._calls = 0, 1, 0
        if folder is None:
            return
        self.index, self.count = jax.process_index(), jax.process_count()
        if self.count > 1:
            run = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint8))
            self._folder = Path(folder, f".hosts-{bytes(run).hex()}")
            require_writable(self._folder)
            self._require_common_folder()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if self.count == 1:
            return
        if error is None:
            self.gather(None)
        elif isinstance(error, Exception):
            self._tell("failed", str(error) or kind.__name__)
        else:  # a signal ends this process, and JAX the others when it misses this one
            return
        jax.distributed.shutdown()  # which waits for the others, so that they have read everything
        if self.first:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.index == 0

    def gather(self, value: Any) -> list:
        """Wait for all processes and return the `value` that each of them gave, which pickle must know, in order.

        Raises UserError as soon as another process has failed.
        """
        if self.count == 1:
            return [value]
        self._calls += 1
        self._tell(f"value-{self._calls}", value)
        return [self._answer(index) for index in range(self.count)]

    def require_none_failed(self) -> None:
        """Raise UserError if another process has failed; to be called now and then during long work."""
        if self.count == 1:
            return
        for path in self._folder.glob("failed-*"):
            raise UserError(f"host {path.name.rpartition('-')[2]} of {self.count} failed: {_read(path)}")

    def _require_common_folder(self):
        self._tell("there", None)
        end = time.monotonic() + _VISIBLE_WITHIN_S
        while missing := [i for i in range(self.count) if not self._path("there", i).exists()]:
            if time.monotonic() > end:
                raise UserError(
                    f"{self._folder.parent}: host {self.index} does not see what host {missing[0]} writes there; name "
                    "a folder for results that all hosts share."
                )
            time.sleep(_LOOK_S)

    def _tell(self, what, content):
        with written_atomically(self._path(what, self.index)) as temporary:
            temporary.write_bytes(pickle.dumps(content))

    def _answer(self, index):
        while not (path := self._path(f"value-{self._calls}", index)).exists():
            self.require_none_failed()
            time.sleep(_LOOK_S)
        return _read(path)

    def _path(self, what, index):
        return self._folder / f"{what}-{index}"


def _read(path):
    return pickle.loads(path.read_bytes())
