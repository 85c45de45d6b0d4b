"""Work in other threads: results prefetched by a pool, calls that may outlive the process's wish to end, and stages of
work that run at the same time, joined by queues of bounded length.
"""

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")
_END = object()
_LOOK_S = 0.1  # how often a thread that waits at a queue looks whether its work is still wanted


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


class _Failed(NamedTuple):
    error: BaseException


class _Unwanted(Exception):
    """Ends a thread when nobody asks for results any more."""


def as_finished(source: Iterable, function: Callable, *, workers: int, waiting: int) -> Generator:
    """Yield `function(entry)` for every entry of `source`, in the order in which the results are finished.

    One thread takes the entries from `source`, and `workers` others call `function`, which must be safe in threads. So
    a slow call delays neither the source nor the other calls, until all workers are busy and `waiting` entries wait.
    The first error of either is raised here. Whenever the caller stops, by an error or at a signal, this returns at
    once: the threads end by themselves after the call that they are in.
    """
    entries, results = queue.Queue(waiting), queue.Queue()
    unwanted = threading.Event()

    def take():
        for entry in source:
            _patiently(entries.put, unwanted, entry)
        for _ in range(workers):
            _patiently(entries.put, unwanted, _END)

    def work():
        while (entry := _patiently(entries.get, unwanted)) is not _END:
            results.put(function(entry))
        results.put(_END)

    def guarded(stage):
        try:
            stage()
        except BaseException as error:
            results.put(_Failed(error))

    for stage in (take, *[work] * workers):
        run(lambda stage=stage: guarded(stage))
    try:
        ended = 0
        while ended < workers:
            result = results.get()
            if isinstance(result, _Failed):
                raise result.error
            if result is _END:
                ended += 1
            else:
                yield result
    finally:
        unwanted.set()


def _patiently(method, unwanted, *arguments):
    """Call `put` or `get` of a queue; wait until it can be done, or raise _Unwanted."""
    while not unwanted.is_set():
        try:
            return method(*arguments, timeout=_LOOK_S)
        except (queue.Full, queue.Empty):
            continue
    raise _Unwanted
