"""A set of pairs that an evaluation scores."""

import dataclasses
import functools
from pathlib import Path
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

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """The picture files of all pairs; none for sets that are stored in another way."""
        items = getattr(self.source, "items", ())
        return tuple(getattr(item, part) for item in items for part in ("input", "target") if hasattr(item, part))

    def read(self, index: int):
        """Return (input, target), uint8 [H, W, 3]. Raises UserError naming a file that cannot be read."""
        return self.source.whole(index)
