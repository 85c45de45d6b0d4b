"""The largest batch of a training step that fits, found by few compilations."""

import dataclasses
from collections.abc import Callable

from concertormer_jax.planning.compilation import Plan

_BY_LINES = 6  # compilations, after which intervals are halved
_OF_THE_STATE = ("weights", "optimiser", "average of the weights", "program")  # memory that no batch changes


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits, 0 if none does, and the bytes that it needs (of batch 0: 0).

    next_batch: the next one, which is too large, with the bytes that it needs; next_compiled: whether it was compiled;
    otherwise its bytes are those of the line through two batches that were.
    """

    batch: int
    bytes: int
    next_batch: int
    next_bytes: int
    next_compiled: bool


def find_largest(first: Plan, unit: int, compile_batch: Callable[[int], Plan]) -> LargestBatch | None:
    """Return the largest multiple of `unit` images that fits, None where a plan does not say how much memory it needs.

    first: the plan of some batch; compile_batch: returns the plan of another. The memory of a step is nearly linear in
    its batch, so the next batch to compile is where a line through two others meets the limit.
    """
    limit = first.memory_limit
    # {batch in units: bytes}. What the state alone needs stands for batch 0, which is never compiled.
    known = {0: sum(first.memory.get(kind, 0) for kind in _OF_THE_STATE), first.images // unit: first.memory_total}
    while limit and min(size for n, size in known.items() if n):
        fits = max((n for n, size in known.items() if size <= limit), default=0)
        exceeds = min((n for n, size in known.items() if n and size > limit), default=None)
        near = sorted(known.keys() - {0}, key=lambda n: abs(known[n] - limit))[:2]
        guess = _meets(known, *(near if len(near) == 2 else (0, *near)), limit)
        if exceeds == fits + 1 or (len(near) == 2 and fits and guess < fits + 1):
            return _found(known, fits, unit, near)
        if exceeds is not None and guess >= exceeds:
            guess = _meets(known, fits, exceeds, limit) if len(known) < _BY_LINES else (fits + exceeds) / 2
        candidate = max(int(guess), fits + 1)
        known[candidate] = compile_batch(candidate * unit).memory_total
    return None


def _meets(known: dict[int, int], one: int, two: int, limit: int) -> float:
    """Where the line through two of {n: bytes} meets the limit. At least one byte is taken to be needed for each n."""
    each = max((known[two] - known[one]) / (two - one), 1.0)
    return two + (limit - known[two]) / each


def _found(known: dict[int, int], fits: int, unit: int, near: list[int]) -> LargestBatch:
    """The answer. near: the batches through which the line goes to the next one, if that was not compiled."""
    following = known.get(fits + 1)
    if following is None:
        one, two = near
        following = known[fits] + round((known[two] - known[one]) / (two - one))
    size = known[fits] if fits else 0
    return LargestBatch(fits * unit, size, (fits + 1) * unit, following, next_compiled=fits + 1 in known)
