"""What makes a program fit: changes of the recipe, and the largest batch of a training step."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from concertormer_jax.planning import chips
from concertormer_jax.planning.compilation import Plan

_BY_LINES = 6  # with so many batches known, intervals are halved
_OF_THE_STATE = ("weights", "optimiser", "average of the weights", "program")  # memory that no batch changes


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A change of the recipe: config keys with their new values. tpu: a larger one to use with it, or None."""

    keys: dict[str, Any]
    tpu: str | None = None

    @property
    def flags(self) -> str:
        """As on the command line."""
        flags = [f"--config.{key}={value}" for key, value in self.keys.items()]
        return " ".join(flags + ([f"--tpu={self.tpu}"] if self.tpu else []))


def suggestions_for_training(config: ConfigDict, target: chips.Target, excess: float) -> list[Suggestion]:
    """Return changes with which the training step of a phase may fit, beginning with those that cost least.

    excess: how many times the memory of a chip is needed. Changes with which the batch of a phase would not divide over
    the chips and the parts are left out. Recomputing blocks (remat) and computing the batch in more parts
    (accumulation) keep the result; bfloat16 changes it slightly.
    """
    devices, batch = len(target.devices), math.gcd(*config.stages.batch)
    remat: dict[str, Any] = {} if config.model.remat else {"model.remat": True}
    half: dict[str, Any] = {} if config.model.dtype == "bfloat16" else {"model.dtype": "bfloat16"}
    accumulation = config.train.accumulation
    each = batch // devices
    parts: list[dict[str, Any]] = [
        {"train.accumulation": n} for n in range(accumulation + 1, each + 1) if each % n == 0
    ]
    enough = [part for part in parts if part["train.accumulation"] >= accumulation * excess]
    wanted = [remat, *enough[:1], *(remat | part for part in parts[:1]), remat | half]
    wanted += [remat | part for part in parts[-1:]] + [remat | half | part for part in parts[-1:]]
    found = [Suggestion(keys) for position, keys in enumerate(wanted) if keys and keys not in wanted[:position]]
    if ":" in target.name:
        names = [name for name in chips.larger(target.name, batch) if batch % (chips.count(name) * accumulation) == 0]
        found += [Suggestion(remat, name) for name in names[:2]]
    return found


def suggestions_for_forward(config: ConfigDict) -> list[Suggestion]:
    """Return changes with which the bare network may fit."""
    return [] if config.model.dtype == "bfloat16" else [Suggestion({"model.dtype": "bfloat16"})]


def with_batch(config: ConfigDict, number: int, images: int) -> ConfigDict:
    """Return a copy of `config` whose phase `number` (from 1) has a batch of `images`."""
    copy = config.copy_and_resolve_references()
    batches = list(copy.stages.batch)
    batches[number - 1] = images
    copy.stages.batch = tuple(batches)
    return copy


def with_suggestion(config: ConfigDict, suggestion: Suggestion) -> ConfigDict:
    """Return a copy of `config` with the keys of `suggestion`."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(suggestion.keys)
    return copy


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits, and the bytes that it needs; both 0 if none fits.

    next_batch: the next one, which is too large, with the bytes that it needs. next_compiled: whether it was compiled;
    if not, its bytes are those of the line through two batches that were.
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
    """Where the line through the points `one` and `two` of {n: bytes} meets the limit; it rises by a byte at least."""
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
