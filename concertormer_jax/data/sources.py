"""Where training samples come from: folders of pairs or of sharp photographs, prepared sets, and mixtures of them.

A source has a length, and for every index a name, a random crop and the whole picture:
`len(source)`, `source.name(index)`, `source.crop(index, crop_px, rng)`, `source.whole(index)`; `source.decoded_bytes()`
is what all its decoded pictures take. `source.part_at(position)` gives the source that serves the sample at `position`
of an endless stream, and the position within that source's own stream; only a mixture passes it on.
"""

import dataclasses
import hashlib
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np

from concertormer_jax.data.cache import ImageReader, decoded_bytes, image_sizes
from concertormer_jax.data.camera import Camera
from concertormer_jax.data.crops import random_corner, reflected_window
from concertormer_jax.data.images import image_size, list_images
from concertormer_jax.data.shake import CameraShake
from concertormer_jax.errors import UserError
from concertormer_jax.paths import local_path

_MIXTURE_CYCLE = 1000


@dataclasses.dataclass(frozen=True)
class Pair:
    """A degraded picture and its target; `name` is the path below input/ without extension."""

    name: str
    input: Path
    target: Path


def find_pairs(folder) -> list[Pair]:
    """Return the pairs of `folder`/input and `folder`/target, matched by name without extension, sorted by name.

    Raises UserError if a folder is missing or empty, and naming the first picture that has no partner or whose partner
    has another size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check the path.")
    for part in ("input", "target"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: has no {part}/ folder; pictures belong in input/ and target/.")
    inputs, targets = _by_name(folder / "input"), _by_name(folder / "target")
    for mine, others, other in ((inputs, targets, "target"), (targets, inputs, "input")):
        unpaired = sorted(mine.keys() - others.keys())
        if unpaired:
            more = f" (nor have {len(unpaired) - 1} more)" if len(unpaired) > 1 else ""
            raise UserError(
                f"{mine[unpaired[0]]}: has no partner {unpaired[0]}.* in {folder / other}{more}; add it or remove this."
            )
    pairs = [Pair(name, inputs[name], targets[name]) for name in sorted(inputs)]
    sizes = image_sizes([path for pair in pairs for path in (pair.input, pair.target)])
    for pair, input_size, target_size in zip(pairs, sizes[::2], sizes[1::2], strict=True):
        _require_equal_sizes(pair, input_size, target_size)
    return pairs


class Pairs:
    """What every source of pairs shares: `items` with names, one stream, crops cut from the whole pictures."""

    items: tuple

    def __len__(self):
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].name

    def part_at(self, position: int):
        return self, position

    def crop(self, index: int, crop_px: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return one random crop of input and target, uint8 [crop_px, crop_px, 3]; small pictures are reflected."""
        degraded, target = self.whole(index)
        corner = random_corner(*target.shape[:2], crop_px, rng)
        return tuple(reflected_window(image, *corner, crop_px, crop_px) for image in (degraded, target))


class PairSource(Pairs):
    """Pairs of a degraded picture and its target in files. With `cached`, decoded pictures stay in memory."""

    def __init__(self, pairs, *, cached: bool = False):
        self.items = tuple(pairs)
        self._cached = cached
        self._read = ImageReader(cached)

    def select(self, pairs) -> "PairSource":
        """Return a source of `pairs` alone, otherwise like this one."""
        return PairSource(pairs, cached=self._cached)

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
        _require_equal_sizes(pair, degraded.shape[:2], target.shape[:2])
        return degraded, target


class PhotoSource:
    """Sharp photographs that `degradation` (see degradations.py) degrades anew for every crop."""

    def __init__(self, paths, degradation, *, cached: bool = False):
        self.items = tuple(paths)
        self.degradation = degradation
        self._cached = cached
        self._read = ImageReader(cached)
        self._names = _relative_names(self.items)

    def __len__(self):
        return len(self.items)

    def decoded_bytes(self) -> int:
        """Return the bytes that all decoded photographs take, from the headers."""
        return decoded_bytes(self.items)

    def name(self, index: int) -> str:
        return self._names[index]

    def part_at(self, position: int):
        return self, position

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


def open_source(place, *, cached: bool = False, degradation: Camera | None = None, data_dir: str = ""):
    """Return a source: the prepared set NAME if `place` is "tfds:NAME", else the pairs or photographs of a folder.

    place: "tfds:NAME" or "tfds:NAME/CONFIG", below `data_dir` (see prepared.open_prepared), of which all training
    pairs are taken; or a folder: one with input/ and target/ holds pairs, any other sharp photographs.
    degradation: what makes inputs of photographs; None: `CameraShake()`. Pairs do not use it.
    Raises UserError like `open_prepared`, `find_pairs` and `list_images`.
    """
    place = os.fspath(place)
    if place.startswith("tfds:"):
        from concertormer_jax.data.prepared import open_prepared  # which builds upon this module

        return open_prepared(place.removeprefix("tfds:"), data_dir=data_dir, cached=cached)
    if "://" in place:
        raise UserError(
            f"{place}: only prepared sets are read from a bucket; give tfds:NAME as the source and the bucket's folder "
            "as config.data.data_dir."
        )
    folder = local_path(place)
    if (folder / "input").is_dir() or (folder / "target").is_dir():
        return PairSource(find_pairs(folder), cached=cached)
    return PhotoSource(list_images(folder), degradation or CameraShake(), cached=cached)


def split_source(source: PairSource | PhotoSource, fraction: float) -> tuple:
    """Return (source for training, source for validation), split by `hold_out`."""
    kept, held = hold_out(source.items, fraction)
    return source.select(kept), source.select(held)


def hold_out(items, fraction: float) -> tuple[list, list]:
    """Split pairs (`Pair`) or photographs (paths) into (kept, held out), the latter about `fraction` of them.

    Pictures of one sequence stay together: those in one subfolder, or named <sequence>-<frame> with a frame that ends
    in digits. Whole sequences are held out, chosen by a hash of their names, so that a picture more changes little; if
    all are of one sequence, its last frames are. At least one picture is held out, at most half of them.
    Raises UserError if `fraction` is not between 0 and 1 or there are fewer than two pictures.
    """
    items = list(items)
    if not 0 < fraction < 1:
        raise UserError(f"the fraction of pictures to hold out must lie between 0 and 1, got {fraction}.")
    if len(items) < 2:
        raise UserError(f"{len(items)} picture(s) cannot be split into training and validation; give two or more.")
    names = _relative_names(items) if isinstance(items[0], Path) else [item.name for item in items]
    groups = {}
    for place in sorted(range(len(items)), key=names.__getitem__):
        groups.setdefault(sequence_of(names[place]), []).append(place)
    wanted = min(max(1, round(fraction * len(items))), len(items) // 2)
    if len(groups) == 1:
        (group,) = groups.values()
        held = set(group[-wanted:])
    else:
        held = set()
        for sequence in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
            # A sequence with more than half of the pictures is for training, whatever its hash.
            if len(held) < wanted and len(held) + len(groups[sequence]) <= len(items) / 2:
                held.update(groups[sequence])
    kept = [item for place, item in enumerate(items) if place not in held]
    return kept, [items[place] for place in sorted(held)]


def sequence_of(name: str) -> str:
    """Return the sequence that a picture belongs to: its subfolder, else what stands before -<frame>, else itself.

    The frame may be followed by the number of a crop: `<sequence>-<frame>_s<number>`.
    """
    folder, _, file = name.rpartition("/")
    return folder or re.sub(r"-[A-Za-z_]*\d+(_s\d+)?$", "", file)


def _by_name(folder) -> dict[str, Path]:
    """Return {path below `folder` without extension: path} of its pictures; UserError if two share a name."""
    named = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise UserError(f"{path}: {named[name].name} has the same name; remove one of the two.")
        named[name] = path
    return named


def _relative_names(paths) -> list[str]:
    """Return the paths below their common folder, without extension."""
    common = os.path.commonpath([Path(path).parent for path in paths]) if paths else ""
    return [Path(path).relative_to(common).with_suffix("").as_posix() for path in paths]


def _require_equal_sizes(pair, input_size, target_size):
    if tuple(input_size) != tuple(target_size):
        raise UserError(
            f"{pair.input}: is {input_size[1]}x{input_size[0]} but its target {pair.target} is "
            f"{target_size[1]}x{target_size[0]}; make both the same size or remove the pair."
        )
