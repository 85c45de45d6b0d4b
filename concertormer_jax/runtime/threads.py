"""Work in threads that a process may leave behind when it ends: a compiler cannot be interrupted."""

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

# Work done in threads a little ahead of its use.


def ahead(threads: ThreadPoolExecutor, function, arguments: Iterable, count: int) -> Iterator:
    """Yield `function(argument)` for every argument, in order; up to `count` are computed before they are asked for."""
    waiting = collections.deque()
    try:
        for argument in arguments:
            waiting.append(threads.submit(function, argument))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


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
