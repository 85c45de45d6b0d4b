"""Reading the sets that `python -m concertormer_jax prepare` wrote: by index, in any order, from a disk or a bucket.

A prepared set is a folder `<data_dir>/<name>[/<config>]/<version>/` of tensorflow-datasets, in ArrayRecord files, which
give random access to records. One more file, pairs.json, lists the pairs, so that names and sizes are known without
reading the pictures.
"""

import dataclasses
import enum
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from concertormer_jax.data.images import ImageReader, decode_rgb
from concertormer_jax.data.sources import Pairs, Sample, digest
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath, checked_name, checked_part, user_path

PAIRS_FILE = "pairs.json"
PREFIX = "tfds:"
TRAINING_SPLITS = ("train", "validation")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_STAT_THREADS = 16
_AGAIN = "delete this folder and prepare the set again, or copy it again."


class Use(enum.Enum):
    """What the splits of a set are for, where no split is named."""

    TRAINING = "training"
    VALIDATION = "validation or test"


class PairsFile(NamedTuple):
    """The content of pairs.json.

    pairs: for each split (name, height, width) of each record; files: the bytes of each file of records.
    """

    pairs: dict[str, list[tuple[str, int, int]]]
    files: dict[str, int]


@dataclasses.dataclass(frozen=True)
class PreparedPair:
    """Record `record` of `split`; the pictures' height and width in pixels."""

    name: str
    split: str
    record: int
    height: int
    width: int


class PreparedSource(Pairs):
    """Pairs of a prepared set. With `cached`, decoded pictures stay in memory.

    records: for each split its `_Records`; folder: of the set, for messages and to tell it from others.
    """

    def __init__(
        self,
        folder: AnyPath,
        records: "Mapping[str, _Records]",
        items: Iterable[PreparedPair],
        *,
        cached: bool = False,
    ):
        self.items = tuple(items)
        self._folder = folder
        self._records = records
        self._cached = cached
        self._read = ImageReader(cached, self._decoded)

    def select(self, items: Iterable[PreparedPair]) -> "PreparedSource":
        return PreparedSource(self._folder, self._records, items, cached=self._cached)

    def describe(self) -> str:
        splits = list(dict.fromkeys(item.split for item in self.items))
        text = f"{len(self):,} pairs of {self._folder}, split {' and '.join(splits)}, such as {self.items[0].name}"
        if tests := [split for split in splits if split not in TRAINING_SPLITS]:
            text += f" (a test set; a score on {tests[0]} of what is chosen by it says little)"
        return text

    def item_keys(self) -> list:
        return [(str(self._folder), item.split, item.record) for item in self.items]

    def digest(self) -> dict:
        rows = [[item.name, item.split, item.height, item.width] for item in self.items]

        def content_of(row: int) -> tuple[bytes, bytes]:
            record = self._record(self.items[row])
            return record["input"], record["target"]

        return digest(rows, content_of)

    def size(self, index: int) -> tuple[int, int]:
        return self.items[index].height, self.items[index].width

    def decoded_bytes(self) -> int:
        return sum(2 * 3 * item.height * item.width for item in self.items)

    def whole(self, index: int) -> Sample:
        """Return input and target. Raises UserError naming the set if a record is damaged."""
        degraded, target = self._read(self.items[index])
        return degraded, target

    def _decoded(self, item: PreparedPair) -> np.ndarray:
        """Input and target, uint8 [2, H, W, 3]."""
        record = self._record(item)
        images = [decode_rgb(record[role], f"{self._folder}: {item.name}") for role in ("input", "target")]
        if any(image.shape[:2] != (item.height, item.width) for image in images):
            raise UserError(f"{self._folder}: {item.name} is not as large as {PAIRS_FILE} says; {_AGAIN}")
        return np.stack(images)

    def _record(self, item: PreparedPair) -> dict[str, bytes]:
        try:
            record = self._records[item.split][item.record]
        except Exception as error:  # the reader raises many kinds on damaged files
            raise UserError(f"{self._folder}: {item.name} cannot be read ({error}); {_AGAIN}") from error
        if record["name"] != item.name.encode():
            raise UserError(f"{self._folder}: {item.name} is not where {PAIRS_FILE} says; {_AGAIN}")
        return record


def default_data_dir() -> str:
    """Return where tensorflow-datasets keeps its sets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return os.fspath(user_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "TFDS_DATA_DIR"))


def prepared_folder(reference: str, data_dir: str = "") -> epath.Path:
    """Return the folder of the newest version of the set `reference`, NAME or NAME/CONFIG, below `data_dir`.

    data_dir: a local path or gs://; "": `default_data_dir()`. Without CONFIG: the only one prepared, else the default.
    Raises UserError, with the command that prepares the set, if it is not there.
    """
    name, _, config = reference.partition("/")
    config = config.rstrip("/")
    for part in (name, *filter(None, [config])):
        checked_part(part, f"{PREFIX}{reference}")
    root = user_path(data_dir or default_data_dir(), "data_dir")
    folder = root / name / config if config else root / name
    prepare = f"prepare it with: python -m concertormer_jax prepare {reference} --source=DIR --data-dir={root}"
    children = _folders(folder)
    if not any(map(_VERSION.fullmatch, children)) and not config:
        configs = [child for child in children if any(map(_VERSION.fullmatch, _folders(folder / child)))]
        default = _default_config(folder)
        if len(configs) > 1 and default not in configs:
            raise UserError(f"tfds:{name}: {root} has {', '.join(sorted(configs))} of it; name one as tfds:{name}/...")
        if configs:
            folder /= default if default in configs else configs[0]
            children = _folders(folder)
    versions = sorted(filter(_VERSION.fullmatch, children), key=lambda text: [int(part) for part in text.split(".")])
    if not versions:
        raise UserError(f"tfds:{reference}: is not in {root}; {prepare}")
    return folder / versions[-1]


def open_prepared(
    reference: str, split: str | Use = Use.TRAINING, *, data_dir: str = "", cached: bool = False
) -> PreparedSource:
    """Return the pairs of the set `reference` (NAME or NAME/CONFIG), sorted by name.

    split: its name; or `Use.TRAINING` for all training pairs, which are in the splits train and validation; or
    `Use.VALIDATION` for the split validation, or the test splits of a set without one. data_dir: as in
    `prepared_folder`. Raises UserError if the set or the split is missing, or a file is not whole.
    """
    folder = prepared_folder(reference, data_dir)
    content = read_pairs_file(folder)
    has = list(content.pairs)
    tests = [name for name in has if name not in TRAINING_SPLITS]
    if split is Use.TRAINING:
        wanted = [name for name in TRAINING_SPLITS if name in has]
    elif split is Use.VALIDATION:
        wanted = ["validation"] if "validation" in has else tests
    else:
        wanted = [split] if split in has else []
    if not wanted:
        kind = split.value if isinstance(split, Use) else split
        raise UserError(f"tfds:{reference}: has no {kind} split; it has {', '.join(has)}.")
    _require_whole(folder, content.files)
    records = {part: _Records(folder, part, content.files) for part in wanted}
    items = [
        PreparedPair(name, part, place, height, width)
        for part in wanted
        for place, (name, height, width) in enumerate(content.pairs[part])
    ]
    for part in wanted:
        if len(records[part]) != len(content.pairs[part]):
            raise UserError(f"{folder}: {PAIRS_FILE} does not fit the files beside it; {_AGAIN}")
    return PreparedSource(folder, records, sorted(items, key=lambda item: item.name), cached=cached)


def read_pairs_file(folder: AnyPath) -> PairsFile:
    """Return pairs.json of a prepared set.

    Raises UserError if it is missing or damaged, and for a name that is no safe part of a path (`checked_name`).
    """
    path = epath.Path(folder) / PAIRS_FILE
    try:
        content = json.loads(path.read_text())
        pairs = {split: [(name, int(h), int(w)) for name, h, w in rows] for split, rows in content["pairs"].items()}
        files = {name: int(size) for name, size in content["files"].items()}
    except FileNotFoundError as error:
        raise UserError(f"{folder}: has no {PAIRS_FILE}, so it was not prepared by this software; {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: is damaged; {_AGAIN}") from error
    for name in (*pairs, *files):
        checked_part(name, path)
    for split, rows in pairs.items():
        names = [checked_name(name, path) for name, _, _ in rows]
        if len(set(names)) < len(names) or not all(height > 0 and width > 0 for _, height, width in rows):
            raise UserError(f"{path}: lists a name twice or a size of nothing in {split}; {_AGAIN}")
    return PairsFile(pairs, files)


def _require_whole(folder: epath.Path, files: dict[str, int]) -> None:
    """Raise UserError unless every file has as many bytes as were written."""
    with ThreadPoolExecutor(_STAT_THREADS) as threads:  # each answer of a bucket takes a while
        found = list(threads.map(_bytes_of, [folder / file for file in files]))
    for (file, size), bytes_found in zip(files.items(), found, strict=True):
        if bytes_found != size:
            raise UserError(f"{folder / file}: has {bytes_found or 'no'} bytes instead of {size}; {_AGAIN}")


def _bytes_of(path: epath.Path) -> int | None:
    try:
        return path.stat().length
    except FileNotFoundError:
        return None


class _Records:
    """The records of one split, by index, as {"input": bytes, "target": bytes, "name": bytes, "sequence": bytes}.

    tensorflow-datasets is not used, since it imports the modules that the set's features.json names.
    """

    def __init__(self, folder: epath.Path, split: str, files: Iterable[str]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        parts = sorted(name for name in files if re.fullmatch(rf".+-{re.escape(split)}\.array_record-\d+-of-\d+", name))
        if not parts or not all(part.endswith(f"-of-{len(parts):05d}") for part in parts):
            raise UserError(f"{folder}: {PAIRS_FILE} lists not all files of {split}; {_AGAIN}")
        try:
            self._encoded = ArrayRecordDataSource([os.fspath(folder / part) for part in parts])
        except Exception as error:  # the reader raises many kinds on damaged files
            raise UserError(f"{folder}: {split} cannot be read ({error}); {_AGAIN}") from error

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        features = parse_example(self._encoded[index]).features.feature
        return {key: features[key].bytes_list.value[0] for key in ("input", "target", "name", "sequence")}


def parse_example(serialized: bytes) -> Any:
    """Return the tf.train.Example of a record."""
    from tensorflow_datasets.proto import tf_example_pb2  # slow, so only when a prepared set is read or written

    # protobuf makes the classes of this module when it is imported.
    return tf_example_pb2.Example.FromString(serialized)  # ty: ignore[missing-attribute]


def _folders(folder: epath.Path) -> list[str]:
    try:
        return [child.name for child in folder.iterdir() if not child.name.startswith((".", "incomplete"))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _default_config(folder: epath.Path) -> str | None:
    """The default configuration, which tensorflow-datasets noted when it prepared a set."""
    try:
        return json.loads((folder / ".config" / "metadata.json").read_text())["default_config_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
