"""What is scored and what was found: a set, scores per picture, their means, and the average over sets."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np


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


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """One picture's scores by metric name, those of the restored picture and those of the input itself.

    index: in its set; file: the restored picture. window_covers: whether one TLC window covers the padded picture, so
    that TLC does nothing. converged: RealBlur's alignment of the restored picture and of the input, None without it.
    """

    index: int
    name: str
    height: int
    width: int
    file: Path
    window_covers: bool
    restored: dict[str, float]
    input: dict[str, float]
    converged: tuple[bool, bool] | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a network, or of pictures made elsewhere, on one set.

    checkpoint: a description of what made the pictures; variant: the network's name in `VARIANTS`, or "custom", or None
    for pictures made elsewhere. tlc: the setting as given; tlc_window: in pixels, None for off. precision: of a float32
    network's products (`compiled.PRECISIONS`), the type that another network computes in, or None for pictures made
    elsewhere.
    """

    checkpoint: str
    variant: str | None
    protocol: str
    set: EvaluationSet
    tlc: str
    tlc_window: int | None
    precision: str | None
    metrics: tuple[str, ...]
    images: tuple[ImageScores, ...]
    devices: str
    seconds: float

    def mean(self, which: str, metric: str) -> float:
        """Return the mean over the images; which: "restored" or "input"."""
        return float(np.mean([getattr(image, which)[metric] for image in self.images]))

    def gain(self, metric: str) -> float:
        """Return how much higher the mean of the restored images is than that of the inputs; 0 if both are infinite."""
        return difference(self.mean("restored", metric), self.mean("input", metric))

    def unaligned(self, which: str) -> int | None:
        """Return on how many pictures RealBlur's alignment did not converge; None if it was not asked for."""
        place = ("restored", "input").index(which)
        outcomes = [image.converged[place] for image in self.images if image.converged is not None]
        return outcomes.count(False) if outcomes else None


@dataclasses.dataclass(frozen=True)
class Average:
    """The plain average of the means of several sets, however many images each of them has."""

    parts: tuple[Evaluation, ...]

    def mean(self, which: str, metric: str) -> float:
        return float(np.mean([part.mean(which, metric) for part in self.parts]))

    def gain(self, metric: str) -> float:
        return difference(self.mean("restored", metric), self.mean("input", metric))


def difference(a: float, b: float) -> float:
    """Return a - b, and 0 for equal infinities."""
    return 0.0 if a == b else a - b
