"""What the names of folders and files say: degraded pictures or their targets, training or test."""

import re
from typing import NamedTuple

# In lower case, letters and digits alone. Where a folder has several of a side, prepare takes the first in this order.
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
# Ordinary words, which name a side only beside a folder of the other side.
_INPUTS_IF_BESIDE = ("low", "before", "source", "src", "bad", "haze", "foggy", "snow", "moire")
_TARGETS_IF_BESIDE = (
    *("high", "after", "reference", "ref", "original", "originals", "label", "labels", "good", "clear"),
)
# An input named like this is one, whatever else stands in the name.
_SURELY_DEGRADED = {"lq", "lr", "blur", "blurry", "blurred", "noisy", "degraded", "hazy", "rainy", "snowy"}
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "val", "valid", "validation", "eval", "evaluation"), "test"),
}
_SAYS_NOTHING = {
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "frame", "frames"),
    *("data", "dataset", "set", "folder", "dir", "files", "all", "png", "jpg", "jpeg", "srgb", "rgb", "gamma"),
    *("bicubic", "crop", "crops", "cropped", "patch", "patches", "sub", "x", *_SPLITS),
}
_SIDES = {**dict.fromkeys(INPUTS, "input"), **dict.fromkeys(TARGETS, "target")}
_SIDES_IF_BESIDE = {**dict.fromkeys(_INPUTS_IF_BESIDE, "input"), **dict.fromkeys(_TARGETS_IF_BESIDE, "target")}


class Role(NamedTuple):
    """The side that a name is of. rank: 0 if it is the side's name, 1 with a word such as images, 2 an ordinary word.

    Rank 3 is for names in which other words stand as well, so that it is not sure.
    """

    side: str
    rank: int


def plain(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def role_of(name: str) -> Role | None:
    """Return the role of a folder by its name; None if the name says nothing of it."""
    # Without numbers at the end, such as those of a scale: LRx4, blur_300.
    for candidate in (plain(name), re.sub(r"(x?\d+)+$", "", plain(name))):
        if candidate in _SIDES:
            return Role(_SIDES[candidate], 0)
        if candidate in _SIDES_IF_BESIDE:
            return Role(_SIDES_IF_BESIDE[candidate], 2)
    telling = "".join(word for word in _words(name) if word not in _SAYS_NOTHING and not word.isdecimal())
    if telling in _SIDES:
        return Role(_SIDES[telling], 1)
    side = side_in(name)
    return side and Role(side, 3)


def side_in(name: str) -> str | None:
    """Return the side of which a word stands in `name`, whatever else does; None without any or with words of both."""
    sides = {_SIDES[word] for word in _words(name) if word in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def is_surely_degraded(name: str) -> bool:
    """Return whether a word that is hardly used for anything but degraded pictures stands in `name`."""
    return side_in(name) == "input" and not _SURELY_DEGRADED.isdisjoint(_words(name))


def without_side(path: str) -> str:
    """Return a path without extension in words joined by hyphens, without those that name a side and without a scale.

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
    """The words and numbers of a name in lower case, also of one in CamelCase."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
