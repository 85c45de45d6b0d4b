"""Work in other threads: results prefetched by a pool, and calls that may outlive the process's wish to end."""

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def prefetch(
    pool: ThreadPoolExecutor, function: Callable[[Argument], Result], arguments: Iterable[Argument], count: int
) -> Iterator[Result]:
    """Yield `function(argument)` for every argument, in order; `pool` computes up to `count` results in advance."""
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class _Worker(threading.Thread):
    """A thread that makes one call. It is a daemon: the process can end before the call does."""

    def __init__(self, function: Callable):
        super().__init__(daemon=True)
        self._function, self.future = function, Future()

    def run(self) -> None:
        try:
            self.future.set_result(self._function())
        except BaseException as error:
            self.future.set_exception(error)


def run(function: Callable[[], Result]) -> "Future[Result]":
    """Call `function` in a daemon thread.

    Use this for the compiler, which cannot be interrupted: a signal handler that raises ends the wait for the result.
    """
    worker = _Worker(function)
    worker.start()
    return worker.future


def busy() -> bool:
    """Whether a function that was given to `run` is still at work."""
    return any(isinstance(thread, _Worker) for thread in threading.enumerate())
