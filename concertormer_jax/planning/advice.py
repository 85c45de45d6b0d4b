"""What to change when a program does not fit."""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from concertormer_jax.planning import chips


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


def for_training(config: ConfigDict, target: chips.Target, excess: float) -> list[Suggestion]:
    """Return changes with which the training step of a phase may fit, those that cost least first.

    excess: how many times the memory of a chip is needed. Changes for which the batch of a phase would not divide over
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


def for_forward(config: ConfigDict) -> list[Suggestion]:
    """Return changes with which the bare network may fit."""
    return [] if config.model.dtype == "bfloat16" else [Suggestion({"model.dtype": "bfloat16"})]


def changed(config: ConfigDict, suggestion: Suggestion) -> ConfigDict:
    """Return a copy of `config` with the keys of `suggestion`."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(suggestion.keys)
    return copy
