"""Finding the pairs of a set in a folder by looking: the author's layout and the usual re-packs.

A pair folder has one child with inputs and one with targets (`input/` and `target/`, `blur/` and `sharp/`, ...), or
holds both kinds of files, told apart by their names. The names of the folders above it say which set and which split it
belongs to.
"""

import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from concertormer_jax.data.folders import Pair, matched, pair_folders, plain
from concertormer_jax.data.images import picture_names
from concertormer_jax.data.listing import find_file, walk
from concertormer_jax.datasets.descriptions import SETS, SetDescription, Variant
from concertormer_jax.datasets.sidd_blocks import SiddBlocks, find_block_files
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import checked_name

# One pair of a set on the disk, whatever form its author gave it: `name`, and what these functions say of it.


@dataclasses.dataclass(frozen=True)
class BlockPair:
    """Block `index` of SIDD's two .mat files, named `files`."""

    name: str
    blocks: SiddBlocks
    index: int
    files: tuple[str, str]


def labels(item: Pair | BlockPair) -> tuple[str, str]:
    """Return what to call input and target in messages: their paths."""
    if isinstance(item, Pair):
        return str(item.input), str(item.target)
    return tuple(f"{file}, block {item.name}" for file in item.files)


def encoded(item: Pair | BlockPair) -> tuple[bytes, bytes]:
    """Return input and target as the content of picture files."""
    if isinstance(item, Pair):
        return item.input.read_bytes(), item.target.read_bytes()
    return tuple(as_png(pixels) for pixels in item.blocks.whole(item.index))


def as_png(pixels) -> bytes:
    """Encode uint8 [H, W, 3] without loss, quickly rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


_CROP_FOLDERS = ("crop", "crops")


@dataclasses.dataclass
class Found:
    """What a folder holds of a set.

    pairs: split to its items (`Pair` or `BlockPair`), sorted by name; places: split to where they were found;
    unpaired: a sentence for each picture or folder without partner.
    """

    pairs: dict[str, list] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    unpaired: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder below the source: its path, the names from the source to it, its children's names."""

    path: Path
    parts: tuple[str, ...]
    folders: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _PairFolder:
    """Pictures by prepared name, and how to call the place in reports."""

    split: str
    inputs: dict[str, Path]
    targets: dict[str, Path]
    input_place: Path
    target_place: Path
    pattern: str


def find(description: SetDescription, variant: Variant, source) -> Found:
    """Find the pairs of `variant` of a set below the folder `source`.

    Raises UserError if there are none, if a name is found in two places, or if a needed list is missing.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; check the path.")
    if description.free_names:
        places, halves = _any_pair_folders(description, source), []
    else:
        places, halves = _pair_folders(description, variant, source)
    listed = _listed(description, source, places)
    found = Found(unpaired=list(halves))
    seen = {}
    for place in places:
        for name in sorted(place.inputs.keys() | place.targets.keys()):
            checked_name(name, place.input_place)
            split = listed.pop(name, None) if listed is not None else place.split
            if split is None or not re.search(description.chosen.get(split, ""), name):
                continue
            degraded, target = place.inputs.get(name), place.targets.get(name)
            if (split, name) in seen:
                raise UserError(
                    f"{degraded or target}: {name} is also in {seen[split, name]}; "
                    "give the folder of one copy as --source, or remove one."
                )
            seen[split, name] = (degraded or target).parent
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


def sets_in(source) -> set[str]:
    """Return the names of the sets whose folders are below `source`, or which its own path names."""
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; check the path.")
    names = {name for folder in _walk(source) for part in folder.parts for name in _named(part)}
    if find_block_files(source):
        names.add("sidd")
    for part in reversed(source.resolve().parts[-3:]):
        names = names or set(_named(part))
    return names


def _pair_folders(description, variant, source) -> tuple[list[_PairFolder], list[str]]:
    """Return the pair folders of the set, and a sentence for each folder of a sequence that lacks a side."""
    found, halves, used = [], [], set()
    for folder in _walk(source):
        if used.intersection(folder.path.parents) or folder.path in used or not _belongs(folder.parts, description):
            continue
        is_sequence = _is_sequence(folder, description)
        names = {}  # of each split, those found in this folder: of several copies the first is taken
        for roles in variant.roles:
            children = [_first(folder.folders, wanted) for wanted in (roles.inputs, roles.targets)]
            split = roles.split or _split(folder, source, description)
            if not split:
                continue
            if None in children:
                if is_sequence and any(children):
                    missing = roles.inputs[0] if children[0] is None else roles.targets[0]
                    halves.append(f"{folder.path}: has {children[0] or children[1]}/ but no {missing}/.")
                continue
            places = [folder.path / child for child in children]
            used.update(places)
            sides = [_by_name(place, description, folder.path.name + "/" if is_sequence else "") for place in places]
            known = names.setdefault(split, set())
            sides = [{name: path for name, path in side.items() if name not in known} for side in sides]
            known.update(*sides)
            if any(sides):
                shown = "<sequence>" if is_sequence else folder.path.name
                pattern = "/".join((*folder.parts[:-1], shown)) if folder.parts else "."
                found.append(_PairFolder(split, *sides, *places, f"{pattern}/{{{children[0]},{children[1]}}}"))
        if description.file_role and folder.pictures:
            place = _told_by_names(folder, source, description)
            if place:
                found.append(place)
    return found, halves


def _any_pair_folders(description, source) -> list[_PairFolder]:
    """The pair folders of a set that is of any pairs, as training finds them; names begin with the folders' names."""
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


def _told_by_names(folder, source, description) -> _PairFolder | None:
    """Inputs and targets that lie side by side."""
    sides = {"input": {}, "target": {}}
    for file in folder.pictures:
        stem = Path(file).stem
        role = description.file_role(stem)
        if role:
            _add(sides[role], description.rename(f"{folder.path.name}/{stem}"), folder.path / file)
    split = _split(folder, source, description)
    if not split or not any(sides.values()):
        return None
    pattern = "/".join((*folder.parts[:-1], "<folder>")) if folder.parts else "."
    return _PairFolder(split, sides["input"], sides["target"], folder.path, folder.path, f"{pattern}/<both>")


def _walk(source: Path) -> Iterator[_Folder]:
    """Yield `source` and every folder below it, parents first, sorted."""
    for place in walk(source):
        parts = place.path.relative_to(source).parts
        yield _Folder(place.path, parts, tuple(place.folders), tuple(picture_names(place.files)))


def _by_name(folder, description, prefix) -> dict[str, Path]:
    """Return {prepared name: path} of the pictures below a folder of one role."""
    named = {}
    # Without pictures nothing is wrong here: their partners will be reported.
    for path in (place.path / name for place in walk(folder) for name in picture_names(place.files)):
        _add(named, description.rename(prefix + path.relative_to(folder).with_suffix("").as_posix()), path)
    return named


def _add(named, name, path):
    if name in named:
        raise UserError(f"{path}: is {name}, as is {named[name]}; remove one of the two.")
    named[name] = path


def _first(children, wanted) -> str | None:
    """Return the child whose name, letters and digits alone, comes first in `wanted`."""
    by_name = {plain(child): child for child in children}
    return next((by_name[plain(name)] for name in wanted if plain(name) in by_name), None)


def _named(part: str) -> list[str]:
    """The sets that a folder of this name belongs to."""
    return [name for name, description in SETS.items() if re.fullmatch(description.folders, plain(part))]


def _belongs(parts, description) -> bool:
    """Whether the deepest folder that is called like a set is called like this one; True without any."""
    if any(plain(part) in _CROP_FOLDERS for part in parts):
        return False
    sets = [names for part in parts if (names := _named(part))]
    return not sets or description.free_names or description.name in sets[-1]


def _is_sequence(folder, description) -> bool:
    pattern = description.sequence_folder
    return pattern is not None and re.fullmatch(pattern, folder.path.name, re.IGNORECASE) is not None


def _split(folder, source, description) -> str:
    """The split that the deepest telling folder names, below the source or in its own path; "" for an unused one."""
    for part in reversed((*source.resolve().parts[-2:], *folder.parts)):
        if plain(part) in description.split_folders:
            return description.split_folders[plain(part)]
    return description.default_split


def _listed(description, source, places) -> dict[str, str] | None:
    """Return {prepared name: split} by the author's lists; None where the folders tell the split.

    Raises UserError if the lists are needed but missing or not what is expected.
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


def _lines(path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text; download it again.") from error


def _add_blocks(found: Found, source) -> None:
    files = find_block_files(source)
    if files:
        blocks = SiddBlocks(*files)
        found.pairs["test"] = [
            BlockPair(blocks.name(index), blocks, index, tuple(map(str, files))) for index in range(len(blocks))
        ]
        found.places["test"] = f"{files[0].name}, {files[1].name}"


def _looked_for(description, variant) -> str:
    roles = variant.roles[0]
    return (
        f"expected folders such as {roles.inputs[0]}/ and {roles.targets[0]}/; "
        f"python -m concertormer_jax prepare {description.name} --help lists the steps."
    )
