"""A set of pairs that an evaluation scores."""

import dataclasses
import functools
from typing import Any


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A named set of pairs.

    source: has a length, and for every index `name(index)`, `size(index)` (height, width), and `whole(index)`, which
    gives (input, target), uint8 [H, W, 3] each.
    """

    name: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every pair."""
        return tuple(self.source.name(index) for index in range(len(self)))

    @functools.cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every pair."""
        return tuple(tuple(self.source.size(index)) for index in range(len(self)))

    def read(self, index: int):
        """Return (input, target), uint8 [H, W, 3]. Raises UserError naming a file that cannot be read."""
        return self.source.whole(index)
