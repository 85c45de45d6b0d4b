"""Work in threads that a process may leave behind when it ends: a compiler cannot be interrupted."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class _Worker(threading.Thread):
    """A thread that does one thing and does not keep the process from ending."""

    def __init__(self, function: Callable):
        super().__init__(daemon=True)
        self._function, self.future = function, Future()

    def run(self):
        try:
            self.future.set_result(self._function())
        except BaseException as error:
            self.future.set_exception(error)


def run(function: Callable) -> Future:
    """Call `function` in a thread of its own. To wait for the result ends early where a signal's handler raises."""
    worker = _Worker(function)
    worker.start()
    return worker.future


def busy() -> bool:
    """Whether a function that `run` was given is still at work."""
    return any(isinstance(thread, _Worker) for thread in threading.enumerate())
