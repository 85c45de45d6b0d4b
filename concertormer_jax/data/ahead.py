"""Work done in threads a little ahead of its use."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


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
