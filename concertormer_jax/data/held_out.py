"""Which pictures are held out of the training, to validate on."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath

_MOST_OVER = 2  # whole sequences may make the held-out part this many times as large as asked for
_SHORT = 5  # pictures that whole sequences may make in any case
_MOST_UNUSED = 10  # frames beside a cut that neither part gets, since they show nearly the same as the held-out ones


def hold_out(items: Iterable[Any], fraction: float) -> tuple[list, list]:
    """Split pairs (`Pair`) or photographs (paths) into (for training, held out), the latter about `fraction` of them.

    Pictures of one sequence stay together: those in one subfolder, or named <sequence>-<frame> with a frame that ends
    in digits. A hash of their names chooses the sequences that are held out, so that one more picture changes little.
    If all sequences are too long, one is cut: its last frames are held out, and frames before these, at most ten and at
    most a tenth of the others, are in neither part. At least one picture is held out, at most half of them.
    Raises UserError if `fraction` is not between 0 and 1 or there are fewer than two pictures.
    """
    items = list(items)
    if not 0 < fraction < 1:
        raise UserError(f"the fraction of pictures to hold out must lie between 0 and 1, got {fraction}.")
    if len(items) < 2:
        raise UserError(f"{len(items)} picture(s) cannot be split into training and validation; give two or more.")
    names = relative_names(items) if isinstance(items[0], Path) else [item.name for item in items]
    sequences: dict[str, list[int]] = {}
    for place in sorted(range(len(items)), key=lambda place: _by_number(names[place])):
        sequences.setdefault(sequence_of(names[place]), []).append(place)
    wanted = min(max(1, round(fraction * len(items))), len(items) // 2)
    in_order = [sequences[name] for name in sorted(sequences, key=lambda name: hashlib.sha256(name.encode()).digest())]
    held, unused = set[int](), set[int]()
    for sequence in in_order if len(in_order) > 1 else ():
        together = len(held) + len(sequence)
        few_enough = together <= max(_MOST_OVER * wanted, _SHORT)
        # A sequence with more than half of the pictures is always for training.
        if len(held) < wanted and few_enough and together <= len(items) / 2:
            held.update(sequence)
    if not held:
        held, unused = _cut(in_order[0], names, wanted)
    training = [item for place, item in enumerate(items) if place not in held | unused]
    return training, [items[place] for place in sorted(held)]


def sequence_of(name: str) -> str:
    """Return the sequence of a picture: its subfolder, else <sequence> of a name <sequence>-<frame>, else its name.

    The number of a crop may follow the frame: <sequence>-<frame>_s<number>.
    """
    folder, _, file = name.rpartition("/")
    return folder or re.sub(r"-[A-Za-z_]*\d+(_s\d+)?$", "", file)


def relative_names(paths: Sequence[AnyPath]) -> list[str]:
    """Return the paths relative to their common folder, without extension."""
    common = os.path.commonpath([Path(path).parent for path in paths]) if paths else ""
    return [Path(path).relative_to(common).with_suffix("").as_posix() for path in paths]


def _cut(sequence: list[int], names: list[str], wanted: int) -> tuple[set[int], set[int]]:
    """Return the indices of the last `wanted` pictures of a sequence, and of the unused ones before them.

    The crops of one frame stay together, unless they are more than half of all pictures.
    """
    crops: dict[str, list[int]] = {}
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
    """A sort key that puts frame-9 before frame-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
