"""Where training samples come from: folders of pairs or of sharp photographs, prepared sets, and mixtures of them.

`Part` says what a source can do. A mixture interleaves several parts and is used like one by the pipeline.
"""

import abc
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from concertormer_jax.data.degrade import Degradation
from concertormer_jax.data.degrade.motion_blur import CameraShake
from concertormer_jax.data.folders import Pair, contents_of, require_equal_size, require_equal_sizes
from concertormer_jax.data.held_out import hold_out, relative_names
from concertormer_jax.data.images import ImageReader, decoded_bytes, image_size, image_sizes
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath, local_path

_MIXTURE_CYCLE = 1000
_DIGESTED = 8  # items of a part whose content goes into its digest, evenly spaced
Sample = tuple[np.ndarray, np.ndarray]  # input and target, uint8 [H, W, 3] each; `GaussianNoise` makes float32 inputs


class Part(abc.ABC):
    """Pictures of one kind from one place; `items` has an entry for each pair or photograph."""

    items: tuple

    def __len__(self) -> int:
        return len(self.items)

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an item, for messages and results."""

    @abc.abstractmethod
    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> Sample:
        """Return one random crop, [crop_px, crop_px, 3] each; small pictures are reflected."""

    @abc.abstractmethod
    def whole(self, index: int) -> Sample:
        """Return the whole picture. Raises UserError naming a file that is missing or damaged."""

    @abc.abstractmethod
    def decoded_bytes(self) -> int:
        """Return the bytes that all decoded pictures take."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return in words what this source is."""

    @abc.abstractmethod
    def item_keys(self) -> list:
        """Return for every item what tells it from the items of other sources on this machine."""

    @abc.abstractmethod
    def digest(self) -> dict:
        """Return what tells these pictures from others wherever they lie; see `digest`."""

    @abc.abstractmethod
    def select(self, items: Iterable) -> "Part":
        """Return a source of `items` alone, otherwise like this one."""

    def part_at(self, position: int) -> "tuple[Part, int]":
        """Return the part that serves sample `position` of an endless stream, and the position in its own stream."""
        return self, position

    def parts(self) -> "list[Part]":
        """Return the parts of a mixture, and of any other source itself."""
        return [self]


class Pairs(Part):
    """A source whose items are pairs with names. Crops are cut from the whole pictures."""

    def name(self, index: int) -> str:
        return self.items[index].name

    @abc.abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) in pixels, without decoding the pictures."""

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> Sample:
        degraded, target = self.whole(index)
        top, left = random_corner(*target.shape[:2], crop_px, rng)
        return (
            reflected_window(degraded, top, left, crop_px, crop_px),
            reflected_window(target, top, left, crop_px, crop_px),
        )


class PairSource(Pairs):
    """Pairs of a degraded picture and its target in files. With `cached`, decoded pictures stay in memory.

    unused: pictures that were found beside the pairs, for `describe`.
    """

    def __init__(self, pairs: Iterable[Pair], *, cached: bool = False, unused: Iterable[Path] = ()):
        self.items = tuple(pairs)
        self._unused = tuple(unused)
        self._cached = cached
        self._read = ImageReader(cached)

    def select(self, items: Iterable[Pair]) -> "PairSource":
        return PairSource(items, cached=self._cached, unused=self._unused)

    def describe(self) -> str:
        pair, unused = self.items[0], self._unused
        aside = f" (pictures beside them are not used: {len(unused):,}, such as {unused[0]})" if unused else ""
        return f"{len(self):,} pairs, such as {pair.input} with its target {pair.target}{aside}"

    def item_keys(self) -> list:
        return [os.path.realpath(pair.target) for pair in self.items]

    def digest(self) -> dict:
        return digest_of_files((pair.name, pair.input, pair.target) for pair in self.items)

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.items[index].input)

    def decoded_bytes(self) -> int:
        return decoded_bytes(path for pair in self.items for path in (pair.input, pair.target))

    def whole(self, index: int) -> Sample:
        """Return input and target. Raises UserError, also for pictures of different sizes."""
        pair = self.items[index]
        degraded, target = self._read(pair.input), self._read(pair.target)
        require_equal_size(pair, degraded.shape[:2], target.shape[:2])
        return degraded, target


class PhotoSource(Part):
    """Sharp photographs that `degradation` degrades anew for every crop."""

    def __init__(self, paths: Iterable[Path], degradation: Degradation, *, cached: bool = False):
        self.items = tuple(paths)
        self.degradation = degradation
        self._cached = cached
        self._read = ImageReader(cached)
        self._names = relative_names(self.items)

    def decoded_bytes(self) -> int:
        return decoded_bytes(self.items)

    def name(self, index: int) -> str:
        return self._names[index]

    def describe(self) -> str:
        kind = type(self.degradation).__name__
        return f"{len(self):,} sharp photographs, such as {self.items[0]}, degraded by {kind}"

    def item_keys(self) -> list:
        return [os.path.realpath(path) for path in self.items]

    def digest(self) -> dict:
        return digest_of_files(zip(self._names, self.items, strict=True))

    def select(self, items: Iterable[Path]) -> "PhotoSource":
        return PhotoSource(items, self.degradation, cached=self._cached)

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> Sample:
        photo = self._read(self.items[index])
        return self._degraded_window(photo, *random_corner(*photo.shape[:2], crop_px, rng), crop_px, crop_px, rng)

    def whole(self, index: int, seed: int = 0) -> Sample:
        """Return the photograph, degraded, and as it is. The degradation depends on its name and on `seed` alone."""
        photo = self._read(self.items[index])
        rng = np.random.default_rng([seed, zlib.crc32(self.name(index).encode())])
        return self._degraded_window(photo, 0, 0, *photo.shape[:2], rng)

    def _degraded_window(
        self, photo: np.ndarray, top: int, left: int, height: int, width: int, rng: np.random.Generator
    ) -> Sample:
        margin = self.degradation.margin_px
        wide = reflected_window(photo, top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        return self.degradation(wide, rng), wide[margin : margin + height, margin : margin + width]


class Mixture:
    """Samples of several sources, evenly interleaved: source k serves the share shares[k] / sum(shares) of them.

    shares: positive numbers, met to 0.001; None: in proportion to the sources' sizes. Every source goes through its own
    pictures in turn. An index counts through the sources one after the other.
    """

    def __init__(self, sources: Iterable[Part], shares: Sequence[float] | None = None):
        self.sources = tuple(sources)
        if shares is None:
            counts = [len(source) for source in self.sources]
        else:
            if len(shares) != len(self.sources):
                raise UserError(f"{len(shares)} shares for {len(self.sources)} sources; give one for each.")
            if not all(math.isfinite(share) and share > 0 for share in shares):
                raise UserError(f"shares {list(shares)}: each share of a source must be positive.")
            counts = [max(1, round(_MIXTURE_CYCLE * share / sum(shares))) for share in shares]
        # Sample j of the n of a source stands at (j + 1/2) / n of the cycle, which interleaves the sources evenly.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = np.argsort(places, kind="stable")
        self._counts = counts
        self._source_at = np.repeat(np.arange(len(counts)), counts)[order]
        self._place_at = np.concatenate([np.arange(count) for count in counts])[order]
        self._starts = np.cumsum([0] + [len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def decoded_bytes(self) -> int:
        return sum(source.decoded_bytes() for source in self.sources)

    def parts(self) -> list[Part]:
        return list(self.sources)

    def part_at(self, position: int) -> tuple[Part, int]:
        cycle, place = divmod(position, len(self._source_at))
        number = self._source_at[place]
        return self.sources[number].part_at(int(cycle * self._counts[number] + self._place_at[place]))

    def name(self, index: int) -> str:
        source, index = self._located(index)
        return source.name(index)

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> Sample:
        source, index = self._located(index)
        return source.crop(index, crop_px, rng)

    def whole(self, index: int) -> Sample:
        source, index = self._located(index)
        return source.whole(index)

    def _located(self, index: int) -> tuple[Part, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[number], index - int(self._starts[number])


Source = Part | Mixture


def open_source(
    place: AnyPath,
    *,
    cached: bool = False,
    degradation: Degradation | None = None,
    data_dir: str = "",
    validation: bool = False,
) -> Part:
    """Open a prepared set, or a folder of pairs or of sharp photographs, as a source.

    place: a folder (see `folders.contents_of`), or "tfds:NAME" or "tfds:NAME/CONFIG" for a set below `data_dir` (see
    `prepared.open_prepared`), of which all training pairs are taken, or with `validation` those to validate on.
    degradation: what makes inputs of photographs; None: `CameraShake()`. Pairs do not use it.
    Raises UserError like `open_prepared`, `contents_of`, `image_sizes` and `require_equal_sizes`.
    """
    place = os.fspath(place)
    if place.startswith("tfds:"):
        from concertormer_jax.data import prepared  # which imports this module

        split = prepared.Use.VALIDATION if validation else prepared.Use.TRAINING
        return prepared.open_prepared(place.removeprefix("tfds:"), split, data_dir=data_dir, cached=cached)
    if "://" in place:
        raise UserError(
            f"{place}: only prepared sets are read from a bucket; give tfds:NAME as the source and the bucket's folder "
            "as config.data.data_dir."
        )
    contents = contents_of(local_path(place))
    if contents.photographs:
        image_sizes(contents.photographs)  # what cannot be opened is named now, and not in the midst of the training
        return PhotoSource(contents.photographs, degradation or CameraShake(), cached=cached)
    require_equal_sizes(contents.pairs)
    return PairSource(contents.pairs, cached=cached, unused=contents.unused)


def split_source(source: Part, fraction: float) -> tuple[Part, Part]:
    """Return (source for training, source for validation), split by `hold_out`."""
    training, held_out = hold_out(source.items, fraction)
    return source.select(training), source.select(held_out)


def leave_out(source: Part, others: Iterable[Part]) -> Part:
    """Return `source` without the items that one of `others` has as well."""
    taken = {key for other in others for key in other.item_keys()}
    return source.select([item for item, key in zip(source.items, source.item_keys(), strict=True) if key not in taken])


def reflected_window(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return image[top : top + height, left : left + width], reflected where the window leaves the image.

    image: [H, W, C]; top and left may be negative. Equal to a window of `numpy.pad(..., mode="reflect")`, which
    reflects repeatedly where one reflection is not enough and repeats the only pixel of an axis of length 1.
    """
    rows, columns = image.shape[:2]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return image[top : top + height, left : left + width]
    return image[_reflected(top, height, rows)[:, None], _reflected(left, width, columns)[None, :]]


def _reflected(start: int, length: int, size: int) -> np.ndarray:
    """Indices [length] of positions start, start + 1, ... in an axis of `size` that is reflected without end."""
    period = max(2 * (size - 1), 1)
    positions = np.arange(start, start + length) % period
    return np.minimum(positions, period - positions)


def random_corner(height: int, width: int, crop_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw (top, left) of a crop that lies inside the image; 0 on an axis shorter than the crop."""
    return int(rng.integers(max(height - crop_px, 0) + 1)), int(rng.integers(max(width - crop_px, 0) + 1))


def digest_of_files(named: Iterable[tuple]) -> dict:
    """Return `digest` of picture files. named: (name, path, ...) for every pair or photograph."""
    named = list(named)
    rows = [[name, *(path.stat().st_size for path in paths)] for name, *paths in named]
    return digest(rows, lambda row: [path.read_bytes() for path in named[row][1:]])


def digest(rows: Sequence[list], content_of: Callable[[int], Iterable[bytes]]) -> dict[str, Any]:
    """Return {"pictures": the number of rows, "digest": SHA-256 of all rows and of the content of some}.

    rows: for every pair or photograph a list, which JSON can hold, of its name and what is known without decoding it;
    content_of: the number of a row to the bytes of its files.
    """
    total = hashlib.sha256(json.dumps(rows).encode())
    for row in range(0, len(rows), max(1, len(rows) // _DIGESTED)):
        for content in content_of(row):
            total.update(hashlib.sha256(content).digest())
    return {"pictures": len(rows), "digest": total.hexdigest()}
