"""The pairs that an evaluation is asked for: of a prepared set, a folder in any known layout, or any other pairs."""

from pathlib import Path

from concertormer_jax.data.folders import Pair, find_pairs
from concertormer_jax.data.prepared import PREFIX, TRAINING_SPLITS, open_prepared, prepared_folder, read_pairs_file
from concertormer_jax.data.sidd_blocks import SiddBlocks
from concertormer_jax.data.sources import PairSource
from concertormer_jax.datasets.descriptions import SETS
from concertormer_jax.datasets.layouts import find, sets_in
from concertormer_jax.errors import UserError


def open_evaluation_sets(data: str, data_dir: str = "") -> tuple[str | None, dict]:
    """Return (name of the set, None for pairs of no known set; {split or folder: source}).

    data: "tfds:NAME" or "tfds:NAME/CONFIG" below `data_dir`, of which all splits but those for training are opened; a
    folder of one of the known sets in any of its layouts, likewise; or any other folder of pairs (`find_pairs`).
    Raises UserError if there is nothing to evaluate, or several sets.
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
    sources = {
        split: _source(items)
        for split, items in found.pairs.items()
        # Training pairs are evaluated if they lie in the folder itself, not below one that says what it is for.
        if split not in TRAINING_SPLITS or found.places[split].startswith("./")
    }
    if not sources:
        raise UserError(f"{data}: has training pairs of {description.title} but none of a test set.")
    return name, sources


def _prepared(reference: str, data_dir: str) -> tuple[str | None, dict]:
    splits = list(read_pairs_file(prepared_folder(reference, data_dir))["pairs"])
    tests = [split for split in splits if split not in TRAINING_SPLITS]
    if not tests:
        raise UserError(f"{PREFIX}{reference}: has training pairs alone; prepare it from a folder with its test set.")
    return known_set(reference), {split: open_prepared(reference, split, data_dir=data_dir) for split in tests}


def known_set(reference: str) -> str | None:
    """Return the name of the known set that NAME or NAME/CONFIG is of; None for pairs of the user's own."""
    name = reference.partition("/")[0]
    return None if name not in SETS or SETS[name].free_names else name


def _source(items):
    if isinstance(items[0], Pair):
        return PairSource(items)
    blocks: SiddBlocks = items[0].blocks
    return blocks
