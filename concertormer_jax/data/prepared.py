"""Reading the sets that `python -m concertormer_jax.prepare` wrote: by index, in any order, from a disk or a bucket.

A prepared set is a folder of tensorflow-datasets (ArrayRecord files, which give any record at once) with one more file,
pairs.json, that lists the pairs, so that names and sizes are known without reading the pictures:
`<data_dir>/<name>[/<config>]/<version>/`.
"""

import dataclasses
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from concertormer_jax.data.cache import ImageReader
from concertormer_jax.data.images import decode_rgb
from concertormer_jax.data.sources import Pairs
from concertormer_jax.errors import UserError
from concertormer_jax.paths import user_path

PAIRS_FILE = "pairs.json"
PREFIX = "tfds:"
TRAINING_SPLITS = ("train", "validation")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_STAT_THREADS = 16
_AGAIN = "delete this folder and prepare the set again, or copy it again."


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

    records: for each split what gives {"input": bytes, "target": bytes, "name": bytes, ...} by index;
    folder: of the set, for messages.
    """

    def __init__(self, folder, records, items, *, cached: bool = False):
        self.items = tuple(items)
        self._folder = folder
        self._records = records
        self._cached = cached
        self._read = ImageReader(cached, self._decoded)

    def select(self, items) -> "PreparedSource":
        """Return a source of the pairs `items` alone, otherwise like this one."""
        return PreparedSource(self._folder, self._records, items, cached=self._cached)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self.items[index].height, self.items[index].width

    def decoded_bytes(self) -> int:
        """Return the bytes that all decoded pictures take."""
        return sum(2 * 3 * item.height * item.width for item in self.items)

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return input and target, uint8 [H, W, 3]. Raises UserError naming the set if a record is damaged."""
        degraded, target = self._read(self.items[index])
        return degraded, target

    def _decoded(self, item) -> np.ndarray:
        """Input and target, uint8 [2, H, W, 3]."""
        try:
            record = self._records[item.split][item.record]
        except Exception as error:  # the reader raises many kinds on damaged files
            raise UserError(f"{self._folder}: {item.name} cannot be read ({error}); {_AGAIN}") from error
        if record["name"].decode() != item.name:
            raise UserError(f"{self._folder}: {item.name} is not where {PAIRS_FILE} says; {_AGAIN}")
        return np.stack([decode_rgb(record[role], f"{self._folder}: {item.name}") for role in ("input", "target")])


def default_data_dir() -> str:
    """Return where tensorflow-datasets keeps its sets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return os.fspath(user_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "TFDS_DATA_DIR"))


def prepared_folder(reference: str, data_dir: str = "") -> epath.Path:
    """Return the folder of the newest version of the set `reference`, NAME or NAME/CONFIG, below `data_dir`.

    data_dir: a local path or gs://; "": `default_data_dir()`. Without CONFIG, the only one prepared or the default one.
    Raises UserError if the set has not been prepared there, saying how to.
    """
    name, _, config = reference.partition("/")
    root = user_path(data_dir or default_data_dir(), "data_dir")
    folder = root / name / config if config else root / name
    prepare = f"prepare it with: python -m concertormer_jax.prepare {reference} --source=DIR --data-dir={root}"
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


def open_prepared(reference: str, split: str | None = None, *, data_dir: str = "", cached: bool = False):
    """Return the `PreparedSource` of the set `reference` (NAME or NAME/CONFIG), its pairs sorted by name.

    split: one of the set's; None: all training pairs, those in the splits train and validation.
    data_dir: as in `prepared_folder`. Raises UserError if the set or the split is missing or files of it are not whole.
    """
    folder = prepared_folder(reference, data_dir)
    content = read_pairs_file(folder)
    wanted = [split] if split else [name for name in TRAINING_SPLITS if name in content["pairs"]]
    if not wanted or wanted[0] not in content["pairs"]:
        has = ", ".join(content["pairs"])
        raise UserError(f"tfds:{reference}: has no {split or 'training'} split; it has {has}.")
    _require_whole(folder, content["files"])
    records = _records(folder, wanted)
    items = [
        PreparedPair(name, part, place, height, width)
        for part in wanted
        for place, (name, height, width) in enumerate(content["pairs"][part])
    ]
    for part in wanted:
        if len(records[part]) != len(content["pairs"][part]):
            raise UserError(f"{folder}: {PAIRS_FILE} does not fit the files beside it; {_AGAIN}")
    return PreparedSource(folder, records, sorted(items, key=lambda item: item.name), cached=cached)


def read_pairs_file(folder) -> dict:
    """Return pairs.json of a prepared set.

    "pairs": for each split [name, height, width] of each record; "files": the bytes of each file of records.
    """
    try:
        return json.loads((epath.Path(folder) / PAIRS_FILE).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder}: has no {PAIRS_FILE}, so it was not prepared by this software; {_AGAIN}") from error
    except ValueError as error:
        raise UserError(f"{folder}/{PAIRS_FILE}: is damaged; {_AGAIN}") from error


def _require_whole(folder, files: dict[str, int]) -> None:
    """Raise UserError unless every file has as many bytes as were written."""
    with ThreadPoolExecutor(_STAT_THREADS) as threads:  # a bucket takes its time to answer
        found = list(threads.map(_bytes_of, [folder / file for file in files]))
    for (file, size), bytes_found in zip(files.items(), found, strict=True):
        if bytes_found != size:
            raise UserError(f"{folder / file}: has {bytes_found or 'no'} bytes instead of {size}; {_AGAIN}")


def _bytes_of(path) -> int | None:
    try:
        return path.stat().length
    except FileNotFoundError:
        return None


def _records(folder, splits) -> dict:
    import tensorflow_datasets as tfds  # slow, so only when a prepared set is opened

    # The bytes of the files are kept: our own decoder gives the same pixels as for a folder.
    encoded = {role: tfds.decode.SkipDecoding() for role in ("input", "target")}
    builder = tfds.builder_from_directory(folder)
    return {split: builder.as_data_source(split, decoders=encoded) for split in splits}


def _folders(folder) -> list[str]:
    try:
        return [child.name for child in folder.iterdir() if not child.name.startswith((".", "incomplete"))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _default_config(folder) -> str | None:
    """The default configuration that tensorflow-datasets noted when it prepared one."""
    try:
        return json.loads((folder / ".config" / "metadata.json").read_text())["default_config_name"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
