"""tensorflow-datasets builders of the sets in descriptions.py.

    PYTHONPATH=. tfds build gopro/blur --imports=concertormer_jax.datasets.builders --manual_dir=DIR

writes the same as `python -m concertormer_jax prepare gopro/blur --source=DIR`, where the dependencies of `tfds build`
are installed (`pip install apache-beam mlcroissant`). Examples are written in the order of their names; the content of
the picture files is kept as it is.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from concertormer_jax.data.held_out import hold_out, sequence_of
from concertormer_jax.data.images import decode_rgb
from concertormer_jax.data.pipeline import grid_corners
from concertormer_jax.data.prepared import PAIRS_FILE, TRAINING_SPLITS
from concertormer_jax.datasets.descriptions import CROP_PX, CROP_STEP_PX, SETS, Variant
from concertormer_jax.datasets.layouts import as_png, encoded, find, labels
from concertormer_jax.datasets.verify import Report, check
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import as_os_error, write_text
from concertormer_jax.runtime.threads import prefetch

FILE_FORMAT = "array_record"  # any record can be read at once
HELD_OUT = 0.05  # share of the training pairs in the validation split, the default of configs/common.py
_FILE_BYTES = 128 * 2**20  # of pictures in one file of records; as much is held in memory while it is written
_THREADS = min(4, os.cpu_count() or 1)


class PairConfig(tfds.core.BuilderConfig):
    """A `Variant` as tensorflow-datasets wants it."""

    def __init__(self, variant: Variant):
        super().__init__(name=variant.name, description=variant.text)
        self.variant = variant


class PairBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Examples {"input", "target": picture, "name", "sequence": text} of the set that the class is named after.

    `checked` may be set to the `Report` of pairs found and checked before; otherwise that is done when preparing.
    """

    VERSION = tfds.core.Version("1.0.0")
    checked: Report | None = None

    def __init__(self, *, file_format=None, **settings):
        if file_format not in (None, FILE_FORMAT):
            raise UserError(f"--file_format={file_format}: these sets are kept as {FILE_FORMAT} alone; leave it out.")
        super().__init__(file_format=FILE_FORMAT, **settings)

    @property
    def description(self):
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

    def _shard_iterators_per_split(self, dl_manager):
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
            # Overlapping crops take more than the pictures they are cut from.
            growth = (CROP_PX / CROP_STEP_PX) ** 2 if crops else 1
            shards[split] = [
                _Shard(part, examples_of, self._written[split], self._bar)
                for part in _parts(pairs, _FILE_BYTES / growth)
            ]
        return shards

    def _download_and_prepare(self, dl_manager, download_config=None):
        self._bar = None
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            if self._bar is not None:
                self._bar.close()
        # The folder has a temporary name until all in it is whole.
        folder = Path(self.data_dir)
        files = sorted(path for path in folder.iterdir() if FILE_FORMAT in path.name)
        content = {"pairs": self._written, "files": {path.name: path.stat().st_size for path in files}}
        write_text(folder / PAIRS_FILE, json.dumps(content, indent=0) + "\n")

    def _example_writer(self):
        return _Writer(self.info.file_format)


class _Writer(tfds.core.ExampleWriter):
    """Writes records uncompressed, since pictures are compressed already, and equal examples as equal bytes."""

    def write(self, path, examples):
        writer = _written(path, array_record_module.ArrayRecordWriter, os.fspath(path), "group_size:1,uncompressed")
        for _, serialized in examples:
            # The features of an example come in an arbitrary order otherwise.
            example = tf_example_pb2.Example.FromString(serialized)
            _written(path, writer.write, example.SerializeToString(deterministic=True))
        _written(path, writer.close)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _written(path, function, *arguments):
    """Call a function of the writer of `path`, which raises RuntimeError whatever the operating system says."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        raise as_os_error(error, path) from error


class _Shard:
    """Gives the examples of one file, reading ahead in threads, and notes [name, height, width] of each."""

    def __init__(self, pairs, examples_of, written, bar):
        self._pairs, self._examples_of, self._written, self._bar = pairs, examples_of, written, bar

    def __call__(self):
        with ThreadPoolExecutor(_THREADS) as threads:
            for examples in prefetch(threads, self._examples_of, self._pairs, _THREADS):
                for name, degraded, target, (height, width) in examples:
                    self._written.append([name, height, width])
                    example = {"input": degraded, "target": target, "name": name, "sequence": sequence_of(name)}
                    yield len(self._written) - 1, example
                self._bar.update()


def split_pairs(report: Report) -> dict[str, list[tuple]]:
    """Return split to its (item, `Measured`), by name; what is held out of the training pairs becomes "validation".

    Frames beside a cut that `hold_out` puts into neither part are with those for training, so that none is lost.
    """
    splits = {}
    for split, part in report.splits.items():
        measured = {item.name: one for item, one in zip(part.items, part.measured, strict=True)}
        parts = {split: part.items}
        if split == "train" and len(part.items) > 1:
            _, held = hold_out(part.items, HELD_OUT)
            names = {item.name for item in held}
            kept = [item for item in part.items if item.name not in names]
            parts = dict(zip(TRAINING_SPLITS, (kept, held), strict=True))
        for name, items in parts.items():
            splits[name] = [(item, measured[item.name]) for item in items]
    return splits


def _parts(pairs, most_bytes) -> list[list]:
    """Cut `pairs` where their files add up to `most_bytes`."""
    parts, filled = [[]], 0
    for pair in pairs:
        size = pair[1].bytes
        if parts[-1] and filled + size > most_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(pair)
        filled += size
    return parts


def _whole(pair):
    """The one example of a pair: (name, input, target, (height, width)), the files' content as it is."""
    item, measured = pair
    return [(item.name, *encoded(item), measured.size)]


def _crops(pair):
    """The examples of a pair cut into overlapping crops, named <name>_s001 and so on; a small one stays whole."""
    item, measured = pair
    images = [decode_rgb(content, label) for content, label in zip(encoded(item), labels(item), strict=True)]
    examples = []
    for number, (top, left) in enumerate(grid_corners(*measured.size, CROP_PX, CROP_STEP_PX), 1):
        cut = [image[top : top + CROP_PX, left : left + CROP_PX] for image in images]
        examples.append((f"{item.name}_s{number:03d}", *map(as_png, cut), cut[0].shape[:2]))
    return examples


def _builder_class(description):
    """The builder of a set, under a name that tensorflow-datasets turns into the set's own."""
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
