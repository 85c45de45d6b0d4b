"""tensorflow-datasets builders of the sets in descriptions.py.

    PYTHONPATH=. tfds build gopro/blur --imports=concertormer_jax.datasets.builders --manual_dir=DIR

writes the same as `python -m concertormer_jax prepare gopro/blur --source=DIR`, but needs the dependencies of
`tfds build` (`pip install apache-beam mlcroissant`). Examples are written in the order of their names. The content of
the picture files stays as it is.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module  # ty: ignore[missing-module-member]  # compiled, without stubs
from tqdm import tqdm

from concertormer_jax.data.held_out import hold_out, sequence_of
from concertormer_jax.data.images import decode_rgb
from concertormer_jax.data.prepared import PAIRS_FILE, TRAINING_SPLITS, parse_example
from concertormer_jax.datasets.descriptions import CROP_PX, CROP_STEP_PX, SETS, SetDescription, Variant
from concertormer_jax.datasets.layouts import Item, as_png, encoded, find, labels
from concertormer_jax.datasets.verify import Measured, Report, check
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import as_os_error, write_text
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.runtime.threads import prefetch

FILE_FORMAT = "array_record"  # with random access to records
HELD_OUT = 0.05  # share of the training pairs in the validation split, the default of configs/common.py
_FILE_BYTES = 128 * 2**20  # of pictures in one file of records; the writer holds as much in memory
_THREADS = min(4, os.cpu_count() or 1)

Example = tuple[str, bytes, bytes, tuple[int, int]]  # name, input, target, (height, width)
CheckedPair = tuple[Item, Measured]


class PairConfig(tfds.core.BuilderConfig):
    """The configuration of tensorflow-datasets for a `Variant`."""

    def __init__(self, variant: Variant):
        super().__init__(name=variant.name, description=variant.text)
        self.variant = variant


class PairBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Examples {"input", "target": picture, "name", "sequence": text} of the set that the class is named after.

    checked: the `Report` of the pairs; None: they are found and checked when the set is prepared.
    """

    VERSION = tfds.core.Version("1.0.0")
    checked: Report | None = None

    def __init__(self, *, file_format: str | None = None, **settings: Any):
        if file_format not in (None, FILE_FORMAT):
            raise UserError(f"--file_format={file_format}: these sets are kept as {FILE_FORMAT} alone; leave it out.")
        super().__init__(file_format=FILE_FORMAT, **settings)

    @property
    def description(self) -> SetDescription:
        """The entry of `SETS`."""
        return SETS[self.name]

    @property
    def variant(self) -> Variant:
        """The variant of this configuration."""
        return self.builder_config.variant if self.builder_config else self.description.variants[0]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.description.title}: {self.variant.text}.",
            features=tfds.features.FeaturesDict(
                {
                    "input": tfds.features.Image(shape=(None, None, 3), doc="degraded picture"),
                    "target": tfds.features.Image(shape=(None, None, 3), doc="what it should be"),
                    "name": tfds.features.Text(doc="of the pair: <sequence>-<frame> where it is a frame"),
                    "sequence": tfds.features.Text(doc="what is held out as a whole"),
                }
            ),
            supervised_keys=("input", "target"),
            homepage=self.description.homepage or None,
            citation=self.description.citation or None,
            license=self.description.licence,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list["_Shard"]]:
        report = self.checked
        if report is None:
            report = check(self.description, find(self.description, self.variant, dl_manager.manual_dir))
        if report.errors:
            raise UserError(report.errors[0])
        splits = split_pairs(report)
        total = sum(map(len, splits.values()))
        self._bar = tqdm(total=total, desc=f"writing {self.description.title}", unit="pair", dynamic_ncols=True)
        self._written = {split: [] for split in splits}
        shards = {}
        for split, pairs in splits.items():
            crops = self.variant.crops and split in TRAINING_SPLITS
            examples_of = _crops if crops else _whole
            # Overlapping crops take this many times the bytes of the pictures.
            growth = (CROP_PX / CROP_STEP_PX) ** 2 if crops else 1
            shards[split] = [
                _Shard(part, examples_of, self._written[split], self._bar)
                for part in _parts_of_size(pairs, _FILE_BYTES / growth)
            ]
        return shards

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        self._bar = None
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            if self._bar is not None:
                self._bar.close()
        # tensorflow-datasets renames the folder, which has a temporary name, after this method.
        folder = Path(self.data_dir)
        files = sorted(path for path in folder.iterdir() if FILE_FORMAT in path.name)
        content = {"pairs": self._written, "files": {path.name: path.stat().st_size for path in files}}
        write_text(folder / PAIRS_FILE, json.dumps(content, indent=0) + "\n")

    def _example_writer(self) -> "_Writer":
        return _Writer(self.info.file_format)


class _Writer(tfds.core.ExampleWriter):
    """Writes records without compression, since pictures are compressed, and equal examples as equal bytes."""

    def write(self, path: AnyPath, examples: Iterable[tuple[Any, bytes]]) -> None:
        writer = _os_errors(path, array_record_module.ArrayRecordWriter, os.fspath(path), "group_size:1,uncompressed")
        for _, serialized in examples:
            # Serialised again, because the order of an example's features is arbitrary.
            _os_errors(path, writer.write, parse_example(serialized).SerializeToString(deterministic=True))
        _os_errors(path, writer.close)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _os_errors(path: AnyPath, function: Callable, *arguments: Any) -> Any:
    """Call a function of the writer of `path`, and turn its RuntimeErrors into those of the operating system."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        raise as_os_error(error, path) from error


class _Shard:
    """Yields the examples of one file, prefetched in threads; appends (name, height, width) of each to `written`."""

    def __init__(
        self,
        pairs: list[CheckedPair],
        examples_of: Callable[[CheckedPair], list[Example]],
        written: list[tuple[str, int, int]],
        bar: tqdm,
    ):
        self._pairs, self._examples_of, self._written, self._bar = pairs, examples_of, written, bar

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for examples in prefetch(pool, self._examples_of, self._pairs, _THREADS):
                for name, degraded, target, (height, width) in examples:
                    self._written.append((name, height, width))
                    example = {"input": degraded, "target": target, "name": name, "sequence": sequence_of(name)}
                    yield len(self._written) - 1, example
                self._bar.update()


def split_pairs(report: Report) -> dict[str, list[CheckedPair]]:
    """Return split to its pairs, sorted by name; part of the training pairs becomes "validation" if there is none.

    Frames that `hold_out` puts into neither part stay with those for training, so that none is lost.
    """
    splits: dict[str, list[CheckedPair]] = {}
    for split, part in report.splits.items():
        measured = {item.name: one for item, one in zip(part.items, part.measured, strict=True) if one}
        parts = {split: part.items}
        if split == "train" and "validation" not in report.splits and len(part.items) > 1:
            _, held = hold_out(part.items, HELD_OUT)
            names = {item.name for item in held}
            kept = [item for item in part.items if item.name not in names]
            parts = dict(zip(TRAINING_SPLITS, (kept, held), strict=True))
        for name, items in parts.items():
            splits[name] = [(item, measured[item.name]) for item in items]
    return splits


def _parts_of_size(pairs: Iterable[CheckedPair], most_bytes: float) -> list[list[CheckedPair]]:
    """Cut `pairs` into parts whose files take at most `most_bytes` together, or into single pairs."""
    parts: list[list[CheckedPair]] = [[]]
    filled = 0
    for pair in pairs:
        size = pair[1].bytes
        if parts[-1] and filled + size > most_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(pair)
        filled += size
    return parts


def _whole(pair: CheckedPair) -> list[Example]:
    """The one example of a pair, with the content of its files as it is."""
    item, measured = pair
    return [(item.name, *encoded(item), measured.size)]


def _crops(pair: CheckedPair) -> list[Example]:
    """The examples of a pair cut into overlapping crops, named <name>_s001 and so on; a small picture stays whole."""
    item, measured = pair
    images = [decode_rgb(content, label) for content, label in zip(encoded(item), labels(item), strict=True)]
    examples = []
    for number, (top, left) in enumerate(_grid_corners(*measured.size, CROP_PX, CROP_STEP_PX), 1):
        degraded, target = (image[top : top + CROP_PX, left : left + CROP_PX] for image in images)
        height, width = degraded.shape[:2]
        examples.append((f"{item.name}_s{number:03d}", as_png(degraded), as_png(target), (height, width)))
    return examples


def _grid_corners(height: int, width: int, crop_px: int, step_px: int) -> list[tuple[int, int]]:
    """(top, left) of crops that cover a picture row by row, `step_px` apart; the last of each axis ends at the border.

    An axis shorter than the crop has one, at 0.
    """

    def starts(length: int) -> list[int]:
        inside = list(range(0, max(length - crop_px, 0) + 1, step_px))
        return inside if inside[-1] + crop_px >= length else [*inside, length - crop_px]

    return [(top, left) for top in starts(height) for left in starts(width)]


def _builder_class(description: SetDescription) -> type[PairBuilder]:
    """The builder of a set. tensorflow-datasets derives the set's name from that of the class."""
    members = {
        "__doc__": f"{description.title}, see descriptions.py.",
        "__module__": __name__,
        "BUILDER_CONFIGS": [PairConfig(variant) for variant in description.variants if variant.name],
        "MANUAL_DOWNLOAD_INSTRUCTIONS": "\n".join(
            f"{number}. {step}" for number, step in enumerate(description.steps, 1)
        ),
    }
    class_name = "".join(part.capitalize() for part in description.name.split("_"))
    return type(PairBuilder)(class_name, (PairBuilder,), members)


BUILDERS = {name: _builder_class(description) for name, description in SETS.items()}


def make_builder(name: str, variant: Variant, data_dir: str) -> PairBuilder:
    """Return the builder of a set and variant that writes below `data_dir`."""
    builder = BUILDERS[name]
    known = [config.name for config in builder.BUILDER_CONFIGS]
    config = (variant.name if variant.name in known else PairConfig(variant)) if variant.name else None
    return builder(data_dir=data_dir, config=config)
