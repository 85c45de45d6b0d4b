"""Which pictures are held out of the training, to validate on."""

import hashlib
import os
import re
from pathlib import Path

from concertormer_jax.runtime.errors import UserError

_MOST_OVER = 2  # a sequence is held out as a whole unless that makes more than so many times what was asked for
_SHORT = 5  # pictures of a sequence that is not worth cutting
_MOST_UNUSED = 10  # frames beside a cut, which show nearly the same as those held out


def hold_out(items, fraction: float) -> tuple[list, list]:
    """Split pairs (`Pair`) or photographs (paths) into (for training, held out), the latter about `fraction` of them.

    Pictures of one sequence stay together: those in one subfolder, or named <sequence>-<frame> with a frame that ends
    in digits. Whole sequences are held out, chosen by a hash of their names, so that a picture more changes little.
    Where each of them is too long for that, one is cut: its last frames are held out, and up to ten before these, of a
    tenth of the others at most, are in neither part. At least one picture is held out, at most half of them.
    Raises UserError if `fraction` is not between 0 and 1 or there are fewer than two pictures.
    """
    items = list(items)
    if not 0 < fraction < 1:
        raise UserError(f"the fraction of pictures to hold out must lie between 0 and 1, got {fraction}.")
    if len(items) < 2:
        raise UserError(f"{len(items)} picture(s) cannot be split into training and validation; give two or more.")
    names = relative_names(items) if isinstance(items[0], Path) else [item.name for item in items]
    sequences = {}
    for place in sorted(range(len(items)), key=lambda place: _by_number(names[place])):
        sequences.setdefault(sequence_of(names[place]), []).append(place)
    wanted = min(max(1, round(fraction * len(items))), len(items) // 2)
    in_order = [sequences[name] for name in sorted(sequences, key=lambda name: hashlib.sha256(name.encode()).digest())]
    held, unused = set(), set()
    for sequence in in_order if len(in_order) > 1 else ():
        together = len(held) + len(sequence)
        few_enough = together <= max(_MOST_OVER * wanted, _SHORT)
        # A sequence with more than half of the pictures is for training, whatever its hash.
        if len(held) < wanted and few_enough and together <= len(items) / 2:
            held.update(sequence)
    if not held:
        held, unused = _cut(in_order[0], names, wanted)
    left_out = held | unused
    kept = [item for place, item in enumerate(items) if place not in left_out]
    return kept, [items[place] for place in sorted(held)]


def sequence_of(name: str) -> str:
    """Return the sequence that a picture belongs to: its subfolder, else what stands before -<frame>, else itself.

    The frame may be followed by the number of a crop: `<sequence>-<frame>_s<number>`.
    """
    folder, _, file = name.rpartition("/")
    return folder or re.sub(r"-[A-Za-z_]*\d+(_s\d+)?$", "", file)


def relative_names(paths) -> list[str]:
    """Return the paths below their common folder, without extension."""
    common = os.path.commonpath([Path(path).parent for path in paths]) if paths else ""
    return [Path(path).relative_to(common).with_suffix("").as_posix() for path in paths]


def _cut(sequence, names, wanted) -> tuple[set, set]:
    """Return the places of the last `wanted` pictures of a sequence, and of those before them that are not used.

    The crops of one frame stay together, unless they are more than half of all pictures.
    """
    crops = {}
    for place in sequence:
        crops.setdefault(re.sub(r"_s\d+$", "", names[place]), []).append(place)
    frames = list(crops.values())
    if len(frames[-1]) > len(names) / 2:
        frames = [[place] for place in sequence]
    held = set(frames.pop())
    while frames and len(held) + len(frames[-1]) <= wanted:
        held.update(frames.pop())
    beside = min(_MOST_UNUSED, len(frames) // 10)
    return held, {place for frame in frames[len(frames) - beside :] for place in frame}


def _by_number(name: str) -> list:
    """A key that sorts names as people number them: frame-9 before frame-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
