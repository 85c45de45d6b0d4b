"""The sets that an evaluation scores, by what the user names as data, and pictures that other software made of them."""

import re
from pathlib import Path

import numpy as np

from concertormer_jax.data.degrade.benchmarks import Bicubic, GaussianNoise
from concertormer_jax.data.folders import Pair, contents_of, find_pairs
from concertormer_jax.data.images import image_sizes, images_by_name
from concertormer_jax.data.prepared import PREFIX, TRAINING_SPLITS, open_prepared, prepared_folder, read_pairs_file
from concertormer_jax.data.sources import Pairs, PairSource, Sample
from concertormer_jax.datasets.descriptions import SETS
from concertormer_jax.datasets.layouts import BlockPair, Item, find, sets_in
from concertormer_jax.datasets.sidd_blocks import SiddBlocks
from concertormer_jax.evaluation.scores import PAIRS, PROTOCOLS, EvaluationSet, Protocol, protocol_named
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import checked_part, is_remote, local_path

_PROTOCOL_OF_SET = {"rain13k": "derain"}  # the others are named like their set


def open_sets(data: str, protocol: str | None, data_dir: str = "") -> tuple[Protocol, list[EvaluationSet]]:
    """Return the protocol and the sets that `--data` names: tfds:NAME, or a folder in any layout of the known sets.

    protocol: its name; None: that of the set, and `PAIRS` for a folder of no known set. Of a protocol with a
    degradation, `--data` is a folder of clean pictures. Sets are named as in the protocol where their folders say so.
    Raises UserError for an unknown protocol and data that cannot be opened.
    """
    chosen = protocol_named(protocol) if protocol else None
    if chosen is not None and chosen.degradation is not None:
        return chosen, [EvaluationSet(*clean_set(data, chosen, chosen.degradation))]
    name, sources = open_evaluation_sets(data, data_dir)
    if chosen is None:
        chosen = _protocol_of(name)
    names = {row: checked_part(set_name(chosen, row, len(sources)), data) for row in sources}
    return chosen, [EvaluationSet(names[row], source) for row, source in sources.items()]


def open_evaluation_sets(data: str, data_dir: str = "") -> tuple[str | None, dict[str, Pairs | SiddBlocks]]:
    """Return the name of a known set, or None for other pairs, and {split or folder: source}.

    data: "tfds:NAME" or "tfds:NAME/CONFIG" below `data_dir`, of which all splits but those for training are opened; a
    folder of a known set in any of its layouts, likewise; or any other folder of pairs (`find_pairs`). Raises UserError
    if there is nothing to evaluate, or if there are several sets.
    """
    if data.startswith(PREFIX):
        return _prepared(data.removeprefix(PREFIX), data_dir)
    names = sets_in(data)
    if len(names) > 1:
        raise UserError(f"{data}: holds {', '.join(sorted(names))}; give the folder of one of them.")
    if not names:
        return None, {Path(data).resolve().name: PairSource(find_pairs(data))}
    (name,) = names
    description = SETS[name]
    found = find(description, description.variants[0], data)
    if found.unpaired:
        raise UserError(found.unpaired[0])
    sources: dict[str, Pairs | SiddBlocks] = {
        split: _source(items)
        for split, items in found.pairs.items()
        # Training pairs count if they lie in `data` itself, not below a folder whose name says what it is for.
        if split not in TRAINING_SPLITS or found.places[split].startswith("./")
    }
    if not sources:
        raise UserError(f"{data}: has training pairs of {description.title} but none of a test set.")
    return name, sources


class DegradedPictures(PairSource):
    """Clean pictures, and as their inputs what `degradation` makes of them, the same every time.

    Sides are cut at the bottom and the right to multiples of `degradation.multiple`. Noise is drawn for each picture by
    NumPy's older generator with seed 0, as in the programs that published results come from.
    """

    def __init__(self, pictures: dict[str, Path], degradation: GaussianNoise | Bicubic):
        super().__init__(Pair(name, path, path) for name, path in pictures.items())
        self._degradation = degradation

    def size(self, index: int) -> tuple[int, int]:
        height, width = super().size(index)
        return self._whole(height), self._whole(width)

    def whole(self, index: int) -> Sample:
        _, picture = super().whole(index)
        clean = picture[: self._whole(picture.shape[0]), : self._whole(picture.shape[1])]
        return self._degradation(clean, np.random.RandomState(0)), clean

    def _whole(self, length: int) -> int:
        return length - length % self._degradation.multiple


def clean_set(data: str, protocol: Protocol, degradation: GaussianNoise | Bicubic) -> tuple[str, DegradedPictures]:
    """Return the name and the source of a folder of clean pictures: a set of `protocol` if the path names one.

    degradation: that of the protocol, which makes the inputs.

    Raises UserError for a prepared set, pairs, two pictures of one name, and those that are too small to be scored.
    """
    if data.startswith(PREFIX):
        raise UserError(f"--data={data}: --protocol={protocol.name} takes a folder of clean pictures; give its path.")
    contents = contents_of(data)
    if contents.pairs:
        raise UserError(
            f"{data}: holds pairs, but --protocol={protocol.name} makes the inputs itself; give the folder of the "
            f"clean pictures, {contents.pairs[0].target.parent}."
        )
    source = DegradedPictures(images_by_name(data), degradation)
    for index in range(len(source)):
        if min(source.size(index)) <= 2 * protocol.border_px:
            raise UserError(f"{source.items[index].target}: is too small for --protocol={protocol.name}; remove it.")
    parts = Path(data).resolve().parts
    return next((part for part in map(_plain, reversed(parts[-3:])) if part in protocol.sets), parts[-1]), source


def _prepared(reference: str, data_dir: str) -> tuple[str | None, dict[str, Pairs | SiddBlocks]]:
    splits = list(read_pairs_file(prepared_folder(reference, data_dir)).pairs)
    tests = [split for split in splits if split not in TRAINING_SPLITS]
    if not tests:
        raise UserError(f"{PREFIX}{reference}: has training pairs alone; prepare it from a folder with its test set.")
    return known_set(reference), {split: open_prepared(reference, split, data_dir=data_dir) for split in tests}


def known_set(reference: str) -> str | None:
    """Return the name of the known set that NAME or NAME/CONFIG is of; None for pairs of the user's own."""
    name = reference.partition("/")[0]
    return None if name not in SETS or SETS[name].free_names else name


def _source(items: list[Item]) -> PairSource | SiddBlocks:
    for item in items:
        if isinstance(item, BlockPair):
            return item.blocks
    return PairSource(item for item in items if isinstance(item, Pair))


def protocol_of_training(source: str) -> Protocol:
    """Return the protocol of the benchmark that a network is for, by what it is trained on: `config.data.source`.

    That of the one known set among the sources, of which prepared ones are known by name and folders by those in them;
    `PAIRS` for any other data.
    """
    names = set()
    for place in filter(None, source.split(",")):
        if place.startswith(PREFIX):
            names.add(known_set(place.removeprefix(PREFIX)))
        elif not is_remote(place) and (folder := local_path(place, "config.data.source")).is_dir():
            names |= sets_in(folder)
    names.discard(None)
    return _protocol_of(names.pop()) if len(names) == 1 else PAIRS


def _protocol_of(name: str | None) -> Protocol:
    """The protocol of the set `name`, None for pairs of no known set."""
    return PROTOCOLS.get(_PROTOCOL_OF_SET.get(name, name), PAIRS)


def set_name(protocol: Protocol, row: str, count: int) -> str:
    """Return the protocol's name of a set called `row` by its folder or split, one of `count`; else `row` itself."""
    if len(protocol.sets) == 1 and count == 1:
        return next(iter(protocol.sets))
    plain = {re.sub("[-_]", "", name).lower(): name for name in protocol.sets}
    return plain.get(re.sub("[-_]", "", row).lower(), row)


def predictions_folder(folder, pairs: EvaluationSet, alone: bool) -> Path:
    """Return the folder with the pictures of a set: one in `folder` that is named like it, else, if the set is the only
    one (`alone`), `folder` itself.

    Case, `-` and `_` do not count in the name. Raises UserError if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--predictions={folder}: no such folder; check the path.")
    named = [path for path in sorted(folder.iterdir()) if path.is_dir() and _plain(path.name) == _plain(pairs.name)]
    if named:
        return named[0]
    if alone:
        return folder
    raise UserError(f"{folder}: has no folder {pairs.name}/; several sets are scored, so each needs one of its own.")


def find_predictions(folder, pairs: EvaluationSet) -> list[Path]:
    """Return the picture of `folder` for every pair of the set, matched by name without extension.

    A subfolder in a name may be written as `<folder>-<name>`. Raises UserError naming the first picture that is
    missing, belongs to no pair, shares its name with another, or has another size than its target.
    """
    folder = Path(folder)
    found = images_by_name(folder, _flat)
    wanted = [_flat(name) for name in pairs.names]
    if missing := [name for name in wanted if name not in found]:
        raise UserError(
            f"{folder}: has no picture {missing[0]}.*{_more(missing)} of the {len(wanted)} of {pairs.name}; every "
            "picture of the set must be scored, so add it."
        )
    if surplus := sorted(found.keys() - set(wanted)):
        raise UserError(
            f"{found[surplus[0]]}: is none of the {len(wanted)} pictures of {pairs.name}{_more(surplus)}; remove it, "
            "or check that --data is the set that was restored."
        )
    paths = [found[name] for name in wanted]
    for path, size, target in zip(paths, image_sizes(paths), pairs.sizes, strict=True):
        if size != tuple(target):
            raise UserError(
                f"{path}: is {size[1]}x{size[0]} but its target in {pairs.name} is {target[1]}x{target[0]}; restore "
                "the pictures at their own size."
            )
    return paths


def _more(names):
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _flat(name):
    return name.replace("/", "-")


def _plain(name):
    return re.sub("[-_]", "", name).lower()
