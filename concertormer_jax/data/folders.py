"""What a folder of pictures holds: pairs of degraded pictures and their targets, or sharp photographs.

Training, preparation, synthesis and evaluation all use these rules. Two sibling folders hold pairs if their names say
so: input/ and target/, blur/ and sharp/ and the like (`INPUTS`, `TARGETS`), in any letter case. They may lie in the
folder itself or anywhere below it, as <sequence>/{blur,sharp}. A folder in which nothing looks like pairs holds
photographs. What looks like pairs but is not complete is an error: degraded pictures must not be taken for sharp ones.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from concertormer_jax.data.images import image_sizes, images_by_name, list_images
from concertormer_jax.data.listing import walk
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath

# Names of folders, lower case letters and digits alone. The command prepare prefers the earlier ones of a side.
INPUTS = (
    *("input", "inputs", "inp", "lq", "blur", "blurry", "blurred", "rain", "rainy", "noisy", "degraded"),
    *("lr", "noise", "hazy", "snowy", "corrupted", "distorted", "compressed", "lowres", "lowquality", "lowlight"),
    *("defocus", "defocused", "blurs"),
)
TARGETS = (
    *("target", "targets", "tar", "gt", "groundtruth", "hq", "sharp", "norain", "clean"),
    *("hr", "gts", "truth", "noblur", "nonblur", "unblurred", "derain", "nonoise", "nohaze", "nosnow"),
    *("highres", "highquality", "normallight", "infocus", "sharps"),
)
# Ordinary words. They name a side only if a folder of the other side lies beside.
_INPUTS_IF_BESIDE = ("low", "before", "source", "src", "bad", "haze", "foggy", "snow", "moire")
_TARGETS_IF_BESIDE = (
    *("high", "after", "reference", "ref", "original", "originals", "label", "labels", "good", "clear"),
)
# Words that only the names of degraded pictures contain.
_SURELY_DEGRADED = {"lq", "lr", "blur", "blurry", "blurred", "noisy", "degraded", "hazy", "rainy", "snowy"}
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "val", "valid", "validation", "eval", "evaluation"), "test"),
}
_NEUTRAL = {  # words that may stand beside the name of a side
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "frame", "frames"),
    *("data", "dataset", "set", "folder", "dir", "files", "all", "png", "jpg", "jpeg", "srgb", "rgb", "gamma"),
    *("bicubic", "crop", "crops", "cropped", "patch", "patches", "sub", "x", *_SPLITS),
}
_SIDES = {**dict.fromkeys(INPUTS, "input"), **dict.fromkeys(TARGETS, "target")}
_SIDES_IF_BESIDE = {**dict.fromkeys(_INPUTS_IF_BESIDE, "input"), **dict.fromkeys(_TARGETS_IF_BESIDE, "target")}


class Role(NamedTuple):
    """The side, "input" or "target", that a folder's name says, and how surely: the lower the rank, the surer.

    rank 0: the name is one of `INPUTS` or `TARGETS`; 1: with neutral words, such as images; 2: it is an ordinary word;
    3: with other words.
    """

    side: str
    rank: int


def plain(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def role_of(name: str) -> Role | None:
    """Return the role of a folder by its name, None if the name does not say any."""
    # The second candidate lacks numbers at the end, such as those of LRx4 and blur_300.
    for candidate in (plain(name), re.sub(r"(x?\d+)+$", "", plain(name))):
        if candidate in _SIDES:
            return Role(_SIDES[candidate], 0)
        if candidate in _SIDES_IF_BESIDE:
            return Role(_SIDES_IF_BESIDE[candidate], 2)
    telling = "".join(word for word in _words(name) if word not in _NEUTRAL and not word.isdecimal())
    if telling in _SIDES:
        return Role(_SIDES[telling], 1)
    side = side_in(name)
    return Role(side, 3) if side else None


def side_in(name: str) -> str | None:
    """Return the side that words in `name` say, None if none or both are said."""
    sides = {_SIDES[word] for word in _words(name) if word in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def is_surely_degraded(name: str) -> bool:
    """Return whether a word in `name` is used for degraded pictures alone."""
    return side_in(name) == "input" and not _SURELY_DEGRADED.isdisjoint(_words(name))


def without_side(path: str) -> str:
    """Return the words of a path without extension, joined by hyphens, but for those that name a side or a scale.

    scene001_blur_1 and scene001_gt_1 give scene-001-1; rain-001x2 and norain-001 give 001.
    """
    parts = []
    for part in path.split("/"):
        words = _words(re.sub(r"(?<=\d)x\d$", "", part, flags=re.IGNORECASE))
        parts.append("-".join(word for word in words if word not in _SIDES))
    return "/".join(part for part in parts if part)


def split_of(name: str) -> str | None:
    """Return "train" or "test" (also for a validation set) if a folder's name says so."""
    return next((_SPLITS[word] for word in _words(name) if word in _SPLITS), None)


def _words(name: str) -> list[str]:
    """The words and numbers of a name in lower case; CamelCase is split too."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


_PARTNERS = {
    "input": "sharp partners (such as target/ or sharp/)",
    "target": "degraded partners (such as input/ or blur/)",
}
_BY_HAND = "put degraded pictures into input/ and their targets, under the same names, into target/"
_PREPARE = "python -m concertormer_jax prepare --help lists the benchmarks whose layouts are known"
_LEVELS_ABOVE = 2  # folders whose names may say that a given folder is a side of pairs: itself and its parent


@dataclasses.dataclass(frozen=True)
class Pair:
    """A degraded picture and its target. name: unique in its set, such as the path below input/ without extension."""

    name: str
    input: Path
    target: Path


class PairFolder(NamedTuple):
    """A folder, and the two in it that hold the degraded pictures and their targets."""

    path: Path
    input: Path
    target: Path


class Contents(NamedTuple):
    """What a folder holds: pairs or photographs. unused: pictures beside the pairs that belong to neither side."""

    pairs: list[Pair]
    photographs: list[Path]
    unused: list[Path]


def contents_of(folder: AnyPath) -> Contents:
    """Return what `folder` holds; pairs are sorted by name, photographs and unused pictures by path.

    Raises UserError if it is missing or holds no pictures, if what looks like pairs is incomplete (the message names
    the first picture without partner), and if it holds training and test pictures together.
    """
    folder = Path(folder)
    pictures = list_images(folder)
    _require_one_split(folder, pictures)
    places = pair_folders(folder)
    if not places:
        _require_not_side_by_side(pictures)
        _require_no_side(folder)
        return Contents([], pictures, [])
    sides = {side for place in places for side in (place.input, place.target)}
    unused = [path for path in pictures if sides.isdisjoint(path.parents)]
    pairs = [pair for place in places for pair in _pairs_in(place, folder)]
    return Contents(sorted(pairs, key=lambda pair: pair.name), [], unused)


def find_pairs(folder: AnyPath) -> list[Pair]:
    """Return the pairs that `folder` holds, sorted by name.

    Raises UserError like `contents_of`, if there are no pairs, and if the two pictures of a pair differ in size.
    """
    contents = contents_of(folder)
    if not contents.pairs:
        raise UserError(f"{folder}: holds pictures but no pairs, such as {contents.photographs[0]}; {_BY_HAND}.")
    require_equal_sizes(contents.pairs)
    return contents.pairs


def pair_folders(folder: AnyPath) -> list[PairFolder]:
    """Return the places of pairs in `folder` and below it, in the order of their paths.

    Raises UserError for a folder that has one side alone, or several folders of one side.
    """
    found: list[PairFolder] = []
    doubtful: list[tuple[list[Path], str]] = []
    sides: set[Path] = set()
    for place in walk(folder):
        if not sides.isdisjoint((place.path, *place.path.parents)):
            continue
        roles = {name: role for name in place.folders if (role := role_of(name))}
        inputs, targets = (_surest(roles, side, 2) for side in ("input", "target"))
        if inputs and targets:
            for side, names in (("degraded pictures", inputs), ("targets", targets)):
                if len(names) > 1:
                    raise UserError(
                        f"{place.path}: has several folders of {side}, {', '.join(f'{name}/' for name in names)}; "
                        "leave the one that is meant and move the others elsewhere."
                    )
            found.append(PairFolder(place.path, place.path / inputs[0], place.path / targets[0]))
            sides |= {found[-1].input, found[-1].target}
        else:
            doubtful += _incomplete(place.path, roles)
    # A folder rain/ is no lone side if it holds input/ and target/.
    for names, message in doubtful:
        if not any(name in (pair.path, *pair.path.parents) for name in names for pair in found):
            raise UserError(message)
    return found


def matched(place: PairFolder) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return {name: picture} of the inputs and of the targets.

    The names are the paths below the two sides without extension. If these differ, but not once the words that name a
    side are left out (blur_1 and gt_1), they are those of `without_side`. Raises UserError if a side holds no pictures,
    or two of one name.
    """
    inputs, targets = images_by_name(place.input), images_by_name(place.target)
    if inputs.keys() != targets.keys():
        plain_inputs, plain_targets = (
            {without_side(name).lower(): path for name, path in side.items()} for side in (inputs, targets)
        )
        unique = len(plain_inputs) == len(inputs) and len(plain_targets) == len(targets)
        if plain_inputs.keys() == plain_targets.keys() and unique and "" not in plain_inputs:
            return plain_inputs, plain_targets
    return inputs, targets


def require_equal_sizes(pairs: Sequence[Pair]) -> None:
    """Raise UserError naming the first of `pairs` whose pictures differ in size, from the headers of the files."""
    sizes = image_sizes([path for pair in pairs for path in (pair.input, pair.target)])
    for pair, input_size, target_size in zip(pairs, sizes[::2], sizes[1::2], strict=True):
        require_equal_size(pair, input_size, target_size)


def require_equal_size(pair: Pair, input_size: Sequence[int], target_size: Sequence[int]) -> None:
    """Raise UserError unless both sizes, (height, width) in pixels, are the same."""
    if tuple(input_size) != tuple(target_size):
        raise UserError(
            f"{pair.input}: is {input_size[1]}x{input_size[0]} but its target {pair.target} is "
            f"{target_size[1]}x{target_size[0]}; make both the same size or remove the pair."
        )


def _surest(roles: Mapping[str, Role], side: str, last_rank: int) -> list[str]:
    """The names of `side` that have the lowest rank of all, if that is at most `last_rank`."""
    ranks = {name: role.rank for name, role in roles.items() if role.side == side and role.rank <= last_rank}
    return [name for name, rank in ranks.items() if rank == min(ranks.values())]


def _incomplete(path: Path, roles: Mapping[str, Role]) -> list[tuple[list[Path], str]]:
    """(Folders, what is wrong with them), which holds unless pairs lie below one of these folders."""
    inputs, targets = (_surest(roles, side, 3) for side in ("input", "target"))
    if inputs and targets:
        names = [path / inputs[0], path / targets[0]]
        return [(names, f"{path}: {inputs[0]}/ and {targets[0]}/ look like pairs; call them input/ and target/.")]
    faults = []
    for name, role in roles.items():
        if role.rank <= 1 or (role.rank == 3 and is_surely_degraded(name)):
            alone = f"rename {name}/" if role.side == "input" else f"give {path / name} itself"
            message = (
                f"{path}: has {name}/ but no folder with its {_PARTNERS[role.side]}; add it, or {alone} if "
                "these are sharp photographs to learn from."
            )
            faults.append(([path / name], message))
    return faults


def _pairs_in(place: PairFolder, source: Path) -> list[Pair]:
    inputs, targets = matched(place)
    for mine, others, other in ((inputs, targets, place.target), (targets, inputs, place.input)):
        if unpaired := sorted(mine.keys() - others.keys()):
            more = f" (nor have {len(unpaired) - 1} more)" if len(unpaired) > 1 else ""
            raise UserError(
                f"{mine[unpaired[0]]}: has no partner {unpaired[0]}.* in {other}{more}; add it or remove this."
            )
    prefix = place.path.relative_to(source)
    return [Pair((prefix / name).as_posix(), path, targets[name]) for name, path in inputs.items()]


def _require_one_split(folder: Path, pictures: Iterable[Path]) -> None:
    """Raise UserError if folders' names or lists in text files say that `folder` holds training and test pictures."""
    seen: dict[str, Path] = {}
    for parent in dict.fromkeys(path.parent for path in pictures):
        while parent != folder:
            if split := split_of(parent.name):
                seen.setdefault(split, parent)
                break
            parent = parent.parent
    if len(seen) > 1:
        raise UserError(
            f"{folder}: holds training and test pictures together; give {seen['train']} to train on, or "
            f"{seen['test']} to validate or to evaluate on."
        )
    if split_of(Path(os.path.abspath(folder)).name):
        return
    listed = {}
    for path in [*Path(os.path.abspath(folder)).parent.glob("*.txt"), *Path(folder).glob("*.txt")]:
        if "list" in path.stem.lower() and (split := split_of(path.stem)):
            listed[split] = path
    if len(listed) > 1:
        raise UserError(
            f"{folder}: {listed['train']} and {listed['test']} say which of its pictures are for training; prepare the "
            f"set, which heeds them ({_PREPARE}), or move the pictures apart."
        )


def _require_not_side_by_side(pictures: Iterable[Path]) -> None:
    """Raise UserError if the names of two files in one folder differ only in the side: rain-1 and norain-1."""
    seen: dict[tuple[Path, str], dict[str | None, Path]] = {}
    for path in pictures:
        stem = path.stem
        key = (path.parent, without_side(stem).lower())
        sides = seen.setdefault(key, {})
        sides.setdefault(side_in(stem), path)
        degraded, other = sides.get("input"), sides.get("target")
        if degraded and not other and is_surely_degraded(degraded.stem):
            other = sides.get(None)
        if degraded and other:
            raise UserError(f"{degraded}: looks like the degraded partner of {other.name}; {_BY_HAND}; {_PREPARE}.")


def _require_no_side(folder: Path) -> None:
    """Raise UserError if `folder` is, or lies in, the degraded side of pairs."""
    path = Path(os.path.abspath(folder))
    for side in [path, *path.parents][:_LEVELS_ABOVE]:
        role = role_of(side.name)
        if role is None or role.side != "input" or role.rank > 1 or not os.access(side.parent, os.R_OK):
            continue
        for sibling in sorted(side.parent.iterdir()):
            other = role_of(sibling.name)
            if other and other.side == "target" and other.rank <= 1 and sibling.is_dir():
                raise UserError(
                    f"{folder}: is the degraded side of pairs with {sibling}; give {side.parent}, which holds both."
                )
