"""Where training samples come from: folders of pairs or of sharp photographs, prepared sets, and mixtures of them.

A source has a length, and for every index a name, a random crop and the whole picture:
`len(source)`, `source.name(index)`, `source.crop(index, crop_px, rng)`, `source.whole(index)`; `source.decoded_bytes()`
is what all its decoded pictures take. `source.part_at(position)` gives the source that serves the sample at `position`
of an endless stream, and the position within that source's own stream; only a mixture passes it on.

`source.parts()` are the sources that a mixture is of, else itself. Of each, `describe()` says in words what it is,
`item_keys()` tells its pictures from others on this machine, and `digest()` from others wherever they lie (listing.py).
"""

import math
import os
import zlib

import numpy as np

from concertormer_jax.data.cache import ImageReader, decoded_bytes
from concertormer_jax.data.degrade.motion_blur import CameraShake
from concertormer_jax.data.degrade.sensor import Camera
from concertormer_jax.data.folders import contents_of, require_equal_size, require_equal_sizes
from concertormer_jax.data.held_out import hold_out, relative_names
from concertormer_jax.data.images import image_size
from concertormer_jax.data.listing import digest_of_files
from concertormer_jax.data.pipeline import random_corner, reflected_window
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import local_path

_MIXTURE_CYCLE = 1000


class Pairs:
    """What every source of pairs shares: `items` with names, one stream, crops cut from the whole pictures."""

    items: tuple

    def __len__(self):
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].name

    def part_at(self, position: int):
        return self, position

    def parts(self) -> list:
        return [self]

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return one random crop of input and target, uint8 [crop_px, crop_px, 3]; small pictures are reflected."""
        degraded, target = self.whole(index)
        corner = random_corner(*target.shape[:2], crop_px, rng)
        return tuple(reflected_window(image, *corner, crop_px, crop_px) for image in (degraded, target))


class PairSource(Pairs):
    """Pairs of a degraded picture and its target in files. With `cached`, decoded pictures stay in memory.

    unused: pictures that were found beside the pairs, for `describe`.
    """

    def __init__(self, pairs, *, cached: bool = False, unused=()):
        self.items = tuple(pairs)
        self._unused = tuple(unused)
        self._cached = cached
        self._read = ImageReader(cached)

    def select(self, pairs) -> "PairSource":
        """Return a source of `pairs` alone, otherwise like this one."""
        return PairSource(pairs, cached=self._cached, unused=self._unused)

    def describe(self) -> str:
        pair, unused = self.items[0], self._unused
        aside = f" (pictures beside them are not used: {len(unused):,}, such as {unused[0]})" if unused else ""
        return f"{len(self):,} pairs, such as {pair.input} with its target {pair.target}{aside}"

    def item_keys(self) -> list:
        return [os.path.realpath(pair.target) for pair in self.items]

    def digest(self) -> dict:
        return digest_of_files((pair.name, pair.input, pair.target) for pair in self.items)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) in pixels, from the header of the input."""
        return image_size(self.items[index].input)

    def decoded_bytes(self) -> int:
        """Return the bytes that all decoded pictures take, from the headers."""
        return decoded_bytes(path for pair in self.items for path in (pair.input, pair.target))

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return input and target, uint8 [H, W, 3]; UserError naming a file that is corrupt or of another size."""
        pair = self.items[index]
        degraded, target = self._read(pair.input), self._read(pair.target)
        require_equal_size(pair, degraded.shape[:2], target.shape[:2])
        return degraded, target


class PhotoSource:
    """Sharp photographs that `degradation` (see degradations.py) degrades anew for every crop."""

    def __init__(self, paths, degradation, *, cached: bool = False):
        self.items = tuple(paths)
        self.degradation = degradation
        self._cached = cached
        self._read = ImageReader(cached)
        self._names = relative_names(self.items)

    def __len__(self):
        return len(self.items)

    def decoded_bytes(self) -> int:
        """Return the bytes that all decoded photographs take, from the headers."""
        return decoded_bytes(self.items)

    def name(self, index: int) -> str:
        return self._names[index]

    def part_at(self, position: int):
        return self, position

    def parts(self) -> list:
        return [self]

    def describe(self) -> str:
        kind = type(self.degradation).__name__
        return f"{len(self):,} sharp photographs, such as {self.items[0]}, degraded by {kind}"

    def item_keys(self) -> list:
        return [os.path.realpath(path) for path in self.items]

    def digest(self) -> dict:
        return digest_of_files(zip(self._names, self.items, strict=True))

    def select(self, paths) -> "PhotoSource":
        """Return a source of the photographs `paths` alone, otherwise like this one."""
        return PhotoSource(paths, self.degradation, cached=self._cached)

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a random crop, degraded and sharp, uint8 [crop_px, crop_px, 3]; small pictures are reflected."""
        photo = self._read(self.items[index])
        return self._degraded_window(photo, *random_corner(*photo.shape[:2], crop_px, rng), crop_px, crop_px, rng)

    def whole(self, index: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the whole photograph, degraded and sharp, uint8 [H, W, 3]: always the same for one name and seed."""
        photo = self._read(self.items[index])
        rng = np.random.default_rng([seed, zlib.crc32(self.name(index).encode())])
        return self._degraded_window(photo, 0, 0, *photo.shape[:2], rng)

    def _degraded_window(self, photo, top, left, height, width, rng):
        margin = self.degradation.margin_px
        wide = reflected_window(photo, top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        return self.degradation(wide, rng), wide[margin : margin + height, margin : margin + width]


class Mixture:
    """Samples of several sources, evenly interleaved, `shares[k]` of them from source k; None: in proportion to size.

    Every source goes through its own pictures in turn. Shares are positive, need not sum to 1, and are met to 0.001.
    Indices run through the sources one after the other.
    """

    def __init__(self, sources, shares=None):
        self.sources = tuple(sources)
        if shares is None:
            counts = [len(source) for source in self.sources]
        else:
            if len(shares) != len(self.sources):
                raise UserError(f"{len(shares)} shares for {len(self.sources)} sources; give one for each.")
            if not all(math.isfinite(share) and share > 0 for share in shares):
                raise UserError(f"shares {list(shares)}: each share of a source must be positive.")
            counts = [max(1, round(_MIXTURE_CYCLE * share / sum(shares))) for share in shares]
        # Within a cycle, sample j of the n of a source stands at (j + 1/2) / n: an even interleaving of all.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = np.argsort(places, kind="stable")
        self._counts = counts
        self._source_at = np.repeat(np.arange(len(counts)), counts)[order]
        self._place_at = np.concatenate([np.arange(count) for count in counts])[order]
        self._starts = np.cumsum([0] + [len(source) for source in self.sources])

    def __len__(self):
        return int(self._starts[-1])

    def decoded_bytes(self) -> int:
        return sum(source.decoded_bytes() for source in self.sources)

    def parts(self) -> list:
        return list(self.sources)

    def part_at(self, position: int):
        cycle, place = divmod(position, len(self._source_at))
        number = self._source_at[place]
        return self.sources[number].part_at(int(cycle * self._counts[number] + self._place_at[place]))

    def name(self, index: int) -> str:
        source, index = self._located(index)
        return source.name(index)

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        source, index = self._located(index)
        return source.crop(index, crop_px, rng)

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        source, index = self._located(index)
        return source.whole(index)

    def _located(self, index):
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[number], index - int(self._starts[number])


def open_source(
    place, *, cached: bool = False, degradation: Camera | None = None, data_dir: str = "", validation: bool = False
):
    """Return a source: the prepared set NAME if `place` is "tfds:NAME", else what a folder holds (folders.contents_of).

    place: a folder of pairs or of sharp photographs; or "tfds:NAME" or "tfds:NAME/CONFIG" below `data_dir` (see
    prepared.open_prepared), of which all training pairs are taken, or with `validation` those to validate on.
    degradation: what makes inputs of photographs; None: `CameraShake()`. Pairs do not use it.
    Raises UserError like `open_prepared`, `contents_of` and `require_equal_sizes`.
    """
    place = os.fspath(place)
    if place.startswith("tfds:"):
        from concertormer_jax.data import prepared  # which builds upon this module

        split = prepared.VALIDATION if validation else prepared.TRAINING
        return prepared.open_prepared(place.removeprefix("tfds:"), split, data_dir=data_dir, cached=cached)
    if "://" in place:
        raise UserError(
            f"{place}: only prepared sets are read from a bucket; give tfds:NAME as the source and the bucket's folder "
            "as config.data.data_dir."
        )
    contents = contents_of(local_path(place))
    if contents.photographs:
        return PhotoSource(contents.photographs, degradation or CameraShake(), cached=cached)
    require_equal_sizes(contents.pairs)
    return PairSource(contents.pairs, cached=cached, unused=contents.unused)


def split_source(source: PairSource | PhotoSource, fraction: float) -> tuple:
    """Return (source for training, source for validation), split by `hold_out`."""
    kept, held = hold_out(source.items, fraction)
    return source.select(kept), source.select(held)


def leave_out(source, others: list):
    """Return `source` without the pictures that are in one of the sources `others` as well."""
    taken = {key for other in others for key in other.item_keys()}
    return source.select([item for item, key in zip(source.items, source.item_keys(), strict=True) if key not in taken])
