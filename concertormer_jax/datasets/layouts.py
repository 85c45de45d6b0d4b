"""Finding the pairs of a set in a folder: the author's layout and the usual re-packs.

A pair folder has one child with inputs and one with targets (`input/` and `target/`, `blur/` and `sharp/`, ...), or it
holds both kinds of files, whose names say which is which. The names of the folders above it say its set and its split.
An item is one pair of a set: two files (`Pair`) or a block of SIDD's .mat files (`BlockPair`).
"""

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from concertormer_jax.data.folders import Pair, matched, pair_folders, plain
from concertormer_jax.data.images import picture_names
from concertormer_jax.data.listing import find_file, walk
from concertormer_jax.datasets.descriptions import SETS, SetDescription, Variant
from concertormer_jax.datasets.sidd_blocks import SiddBlocks, find_block_files
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath, checked_name

_CROP_FOLDERS = ("crop", "crops")


@dataclasses.dataclass(frozen=True)
class BlockPair:
    """A pair of blocks of SIDD's two .mat files. files: their names, for messages."""

    name: str
    blocks: SiddBlocks
    index: int
    files: tuple[str, str]


Item = Pair | BlockPair


def labels(item: Item) -> tuple[str, str]:
    """Return what messages call the input and the target: their paths."""
    if isinstance(item, Pair):
        return str(item.input), str(item.target)
    noisy, clean = item.files
    return f"{noisy}, block {item.name}", f"{clean}, block {item.name}"


def encoded(item: Item) -> tuple[bytes, bytes]:
    """Return input and target as the content of picture files."""
    if isinstance(item, Pair):
        return item.input.read_bytes(), item.target.read_bytes()
    noisy, clean = item.blocks.whole(item.index)
    return as_png(noisy), as_png(clean)


def as_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] losslessly, with little compression for speed."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


@dataclasses.dataclass
class Found:
    """What a folder holds of a set.

    pairs: split to its items, sorted by name; places: split to the folders of its items, for messages; unpaired: a
    sentence for each picture or folder without partner.
    """

    pairs: dict[str, list[Item]] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    unpaired: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder below the source. parts: the names from the source to it; folders, pictures: the names in it."""

    path: Path
    parts: tuple[str, ...]
    folders: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _PairFolder:
    """The inputs and targets of a pair folder by prepared name. pattern: what reports call the place."""

    split: str
    inputs: dict[str, Path]
    targets: dict[str, Path]
    input_place: Path
    target_place: Path
    pattern: str


def find(description: SetDescription, variant: Variant, source: AnyPath) -> Found:
    """Find the pairs of `variant` of a set below the folder `source`.

    Raises UserError if there are none, if a name is found in two places, or if a needed list is missing.
    """
    source = Path(source)
    if description.free_names:
        places, incomplete = _any_pair_folders(description, source), []
    else:
        places, incomplete = _pair_folders(description, variant, source)
    listed = _listed(description, source, places)
    found = Found(unpaired=incomplete)
    seen: dict[tuple[str, str], Path] = {}
    for place in places:
        for name in sorted(place.inputs.keys() | place.targets.keys()):
            checked_name(name, place.input_place)
            split = listed.pop(name, None) if listed is not None else place.split
            if split is None or not re.search(description.chosen.get(split, ""), name):
                continue
            degraded, target = place.inputs.get(name), place.targets.get(name)
            path = place.inputs.get(name) or place.targets[name]
            if (split, name) in seen:
                raise UserError(
                    f"{path}: {name} is also in {seen[split, name]}; give the folder of one copy as --source, or "
                    "remove one."
                )
            seen[split, name] = path.parent
            if degraded and target:
                found.pairs.setdefault(split, []).append(Pair(name, degraded, target))
            elif degraded:
                found.unpaired.append(f"{degraded}: has no partner in {place.target_place}.")
            elif not description.spare_targets:
                found.unpaired.append(f"{target}: has no partner in {place.input_place}.")
            found.places.setdefault(split, place.pattern)
    for name, split in (listed or {}).items():
        found.unpaired.append(f"{source}: {description.lists[split]} lists {name}, which is missing.")
    if description.name == "sidd":
        _add_blocks(found, source)
    if not found.pairs and not found.unpaired:
        raise UserError(
            f"{source}: holds no pairs of {description.title}"
            + (f" ({variant.name})" if variant.name else "")
            + f"; {_looked_for(description, variant)}"
        )
    order = list(description.counts)
    found.pairs = {
        split: sorted(found.pairs[split], key=lambda pair: pair.name) for split in sorted(found.pairs, key=order.index)
    }
    return found


def sets_in(source: AnyPath) -> set[str]:
    """Return the names of the sets whose folders are in or below `source`; if none is, those that its path names.

    Raises UserError if there is no such folder.
    """
    source = Path(source)
    named = [_named(part) for folder in _walk(source) for part in folder.parts]
    sure = {candidates[0] for candidates in named if len(candidates) == 1}
    names = {name for candidates in named for name in sure.intersection(candidates) or candidates[:1]}
    if find_block_files(source):
        names.add("sidd")
    for part in reversed(source.resolve().parts[-3:]):
        names = names or set(_named(part)[:1])
    return names


def _pair_folders(description: SetDescription, variant: Variant, source: Path) -> tuple[list[_PairFolder], list[str]]:
    """Return the pair folders of the set, and a sentence for each folder of a sequence that lacks a side."""
    found: list[_PairFolder] = []
    incomplete: list[str] = []
    used: set[Path] = set()
    for folder in _walk(source):
        if used.intersection(folder.path.parents) or folder.path in used or not _belongs(folder.parts, description):
            continue
        is_sequence = _is_sequence(folder, description)
        names: dict[str, set[str]] = {}  # of each split, those found in this folder; of several copies the first counts
        for roles in variant.roles:
            inputs, targets = _first(folder.folders, roles.inputs), _first(folder.folders, roles.targets)
            split = roles.split or _split(folder, source, description)
            if not split:
                continue
            if inputs is None or targets is None:
                if is_sequence and (inputs or targets) and roles is variant.roles[0]:
                    missing = roles.inputs[0] if inputs is None else roles.targets[0]
                    incomplete.append(f"{folder.path}: has {inputs or targets}/ but no {missing}/.")
                continue
            input_place, target_place = folder.path / inputs, folder.path / targets
            used.update((input_place, target_place))
            known = names.setdefault(split, set())
            prefix = "/".join((*folder.path.parts[-description.sequence_depth :], "")) if is_sequence else ""
            input_paths = _without(known, _by_name(input_place, description, prefix))
            target_paths = _without(known, _by_name(target_place, description, prefix))
            known.update(input_paths, target_paths)
            if input_paths or target_paths:
                shown = "<sequence>" if is_sequence else folder.path.name
                pattern = "/".join((*folder.parts[:-1], shown)) if folder.parts else "."
                pattern = f"{pattern}/{{{inputs},{targets}}}"
                found.append(_PairFolder(split, input_paths, target_paths, input_place, target_place, pattern))
        if description.file_role and folder.pictures:
            place = _mixed_folder(folder, source, description)
            if place:
                found.append(place)
    return found, incomplete


def _without(names: set[str], side: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in side.items() if name not in names}


def _any_pair_folders(description: SetDescription, source: Path) -> list[_PairFolder]:
    """The pair folders of the user's own set, by the rules of folders.py; names begin with those of the folders."""
    found = []
    for place in pair_folders(source):
        parts = place.path.relative_to(source).parts
        if any(plain(part) in _CROP_FOLDERS for part in parts):
            continue
        split = _split(_Folder(place.path, parts, (), ()), source, description)
        prefix = "".join(f"{part}/" for part in parts if plain(part) not in description.split_folders)
        inputs, targets = ({prefix + name: path for name, path in side.items()} for side in matched(place))
        pattern = "/".join(parts) or "."
        shown = f"{pattern}/{{{place.input.name},{place.target.name}}}"
        found.append(_PairFolder(split, inputs, targets, place.input, place.target, shown))
    return found


def _mixed_folder(folder: _Folder, source: Path, description: SetDescription) -> _PairFolder | None:
    """A folder of inputs and targets side by side, which `description.file_role` tells apart."""
    sides: dict[str, dict[str, Path]] = {"input": {}, "target": {}}
    for file in folder.pictures:
        stem = Path(file).stem
        role = description.file_role(stem) if description.file_role else None
        if role:
            _add(sides[role], description.rename(f"{folder.path.name}/{stem}"), folder.path / file)
    split = _split(folder, source, description)
    if not split or not any(sides.values()):
        return None
    pattern = "/".join((*folder.parts[:-1], "<folder>")) if folder.parts else "."
    return _PairFolder(split, sides["input"], sides["target"], folder.path, folder.path, f"{pattern}/<both>")


def _walk(source: Path) -> Iterator[_Folder]:
    """Yield `source` and every folder below it, sorted, parents first."""
    for place in walk(source):
        parts = place.path.relative_to(source).parts
        yield _Folder(place.path, parts, tuple(place.folders), tuple(picture_names(place.files)))


def _by_name(folder: Path, description: SetDescription, prefix: str) -> dict[str, Path]:
    """Return {prepared name: path} of the pictures below a folder of one side, which may hold none."""
    named: dict[str, Path] = {}
    for path in (place.path / name for place in walk(folder) for name in picture_names(place.files)):
        _add(named, description.rename(prefix + path.relative_to(folder).with_suffix("").as_posix()), path)
    return named


def _add(named: dict[str, Path], name: str, path: Path) -> None:
    if name in named:
        raise UserError(f"{path}: is {name}, as is {named[name]}; remove one of the two.")
    named[name] = path


def _first(children: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Return the child whose name, reduced to letters and digits, comes first in `wanted`."""
    by_name = {plain(child): child for child in children}
    return next((by_name[plain(name)] for name in wanted if plain(name) in by_name), None)


def _named(part: str) -> list[str]:
    """The sets that a folder of this name belongs to."""
    return [name for name, description in SETS.items() if re.fullmatch(description.folders, plain(part))]


def _belongs(parts: Iterable[str], description: SetDescription) -> bool:
    """Whether the deepest folder with the name of a set has the name of this set; True if no folder has any."""
    parts = list(parts)
    if any(plain(part) in _CROP_FOLDERS for part in parts):
        return False
    sets = [names for part in parts if (names := _named(part))]
    return not sets or description.free_names or description.name in sets[-1]


def _is_sequence(folder: _Folder, description: SetDescription) -> bool:
    pattern = description.sequence_folder
    return pattern is not None and re.fullmatch(pattern, folder.path.name, re.IGNORECASE) is not None


def _split(folder: _Folder, source: Path, description: SetDescription) -> str:
    """The split that the name of the deepest folder says, of those below the source and its own; "" for none to use."""
    for part in reversed((*source.resolve().parts[-2:], *folder.parts)):
        if plain(part) in description.split_folders:
            return description.split_folders[plain(part)]
    return description.default_split


def _listed(description: SetDescription, source: Path, places: Sequence[_PairFolder]) -> dict[str, str] | None:
    """Return {prepared name: split} by the author's lists; None if the folders say the split.

    Raises UserError if a list is needed but missing, or not in the expected format.
    """
    original = [place for place in places if re.search("<sequence>", place.pattern)]
    if not description.lists or not original:
        return None
    splits = {}
    for split, name in description.lists.items():
        path = find_file(source, name) or source.parent / name
        if not path.is_file():
            raise UserError(
                f"{source}: has no {name}, which says what belongs to the {split} split; put it beside the scenes."
            )
        for number, line in enumerate(_lines(path), 1):
            columns = line.split()
            if columns and len(columns) != 2:
                raise UserError(f"{path}: line {number} is not a target path and an input path; download it again.")
            if columns:
                splits[description.rename(Path(columns[1]).with_suffix("").as_posix())] = split
    return splits


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text; download it again.") from error


def _add_blocks(found: Found, source: Path) -> None:
    files = find_block_files(source)
    if files:
        blocks = SiddBlocks(*files)
        names = str(files[0]), str(files[1])
        found.pairs["test"] = [BlockPair(blocks.name(index), blocks, index, names) for index in range(len(blocks))]
        found.places["test"] = f"{files[0].name}, {files[1].name}"


def _looked_for(description: SetDescription, variant: Variant) -> str:
    roles = variant.roles[0]
    return (
        f"expected folders such as {roles.inputs[0]}/ and {roles.targets[0]}/; "
        f"python -m concertormer_jax prepare {description.name} --help lists the steps."
    )
