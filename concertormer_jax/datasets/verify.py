"""Checks of the pairs of a set: every file is decoded once, and everything wrong becomes an error or a warning.

Errors stop a preparation; warnings are for the user to judge.
"""

import collections
import dataclasses
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from concertormer_jax.data.held_out import sequence_of
from concertormer_jax.data.images import decode_rgb
from concertormer_jax.datasets.descriptions import SetDescription
from concertormer_jax.datasets.layouts import Found, Item, encoded, labels
from concertormer_jax.datasets.pairing import Pairing, compare, thumbnail
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.threads import prefetch

_THREADS = min(8, os.cpu_count() or 1)
_SHUFFLED_SHARE = 0.1  # of misplaced inputs; with more, the folder as a whole is wrong
_DETAIL_STEP_PX = 4  # every fourth row and column is looked at


@dataclasses.dataclass(frozen=True)
class Measured:
    """What decoding a pair gives. size: (height, width) in pixels; bytes: of both files together; the others are of
    (input, target). detail: see `_detail`.
    """

    size: tuple[int, int]
    bytes: int
    digests: tuple[bytes, bytes]
    thumbnails: tuple[np.ndarray, np.ndarray]
    detail: tuple[float, float]


@dataclasses.dataclass
class SplitReport:
    """The items of a split and what their files hold. measured: one for each item, None for a damaged pair."""

    items: list[Item]
    measured: list[Measured | None]
    pairing: Pairing | None = None

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return len({sequence_of(item.name) for item in self.items})

    @property
    def sizes(self) -> collections.Counter:
        """How often each (height, width) occurs."""
        return collections.Counter(one.size for one in self.measured if one)

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return sum(one.bytes for one in self.measured if one)


@dataclasses.dataclass
class Report:
    """The checked splits, and one sentence for each error and each warning."""

    splits: dict[str, SplitReport]
    errors: list[str]
    warnings: list[str]


def check(description: SetDescription, found: Found) -> Report:
    """Decode and judge all pairs of `found`, in threads, with a progress bar."""
    report = Report({}, list(found.unpaired), _count_warnings(description, found))
    total = sum(map(len, found.pairs.values()))
    with (
        tqdm(total=total, desc=f"checking {description.title}", unit="pair", dynamic_ncols=True) as bar,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        for split, items in found.pairs.items():
            measured: list[Measured | None] = []
            for result in prefetch(threads, _measured_or_problem, items, 2 * _THREADS):
                if isinstance(result, Measured):
                    measured.append(result)
                else:
                    report.errors.append(result)
                    measured.append(None)
                bar.update()
            report.splits[split] = SplitReport(items, measured)
        bar.set_description(f"comparing {description.title}")
        for part in report.splits.values():
            _judge_pairing(part, report)
            _judge_detail(description, part, report)
        _judge_duplicates(description, report)
    return report


def measure(item: Item) -> Measured:
    """Decode a pair. Raises UserError naming a file that is damaged, or of another size than its partner."""
    contents, (input_label, target_label) = encoded(item), labels(item)
    degraded, target = decode_rgb(contents[0], input_label), decode_rgb(contents[1], target_label)
    (height, width), (target_height, target_width) = degraded.shape[:2], target.shape[:2]
    if (height, width) != (target_height, target_width):
        raise UserError(
            f"{input_label}: is {width}x{height} but its target {target_label} is {target_width}x{target_height}."
        )
    return Measured(
        (height, width),
        sum(map(len, contents)),
        (_digest(degraded), _digest(target)),
        (thumbnail(degraded), thumbnail(target)),
        (_detail(degraded), _detail(target)),
    )


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _measured_or_problem(item: Item) -> Measured | str:
    try:
        return measure(item)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: cannot be read ({error.strerror}); change its mode or owner, or copy it again."


def _detail(pixels: np.ndarray) -> float:
    """Mean |difference| of neighbouring green values along some rows, plus that along some columns."""
    green = pixels[:, :, 1].astype(np.int16)
    rows, columns = green[::_DETAIL_STEP_PX], green[:, ::_DETAIL_STEP_PX]
    steps = [np.abs(np.diff(rows, axis=1)), np.abs(np.diff(columns, axis=0))]
    return float(sum(step.mean() for step in steps if step.size))


def _count_warnings(description: SetDescription, found: Found) -> list[str]:
    warnings = []
    for split, published in description.counts.items():
        count = len(found.pairs.get(split, ()))
        if published is None:
            continue
        if not count:
            warnings.append(f"{split}: not found; the published one has {published:,} pairs.")
        elif count != published:
            warnings.append(f"{split}: has {count:,} pairs, the published one {published:,}.")
    return warnings


def _judge_pairing(part: SplitReport, report: Report) -> None:
    """Report inputs that lie beside the target of another pair."""
    whole = [(item, one) for item, one in zip(part.items, part.measured, strict=True) if one]
    if len(whole) < 2:
        return
    names = [labels(item) for item, _ in whole]
    inputs, targets = (np.stack([one.thumbnails[side] for _, one in whole]) for side in (0, 1))
    part.pairing = pairing = compare(inputs, targets)
    misplaced = np.flatnonzero(pairing.misplaced)
    if len(misplaced) > max(2, _SHUFFLED_SHARE * len(whole)):
        examples = ", ".join(names[index][0] for index in misplaced[:3])
        report.errors.append(
            f"{len(misplaced)} of {len(whole)} inputs show what the target of another pair does ({examples}, ...): "
            "the folder is shuffled or misaligned."
        )
        return
    for index in misplaced:
        other = pairing.nearest[index]
        mutual = pairing.nearest[other] == index
        if mutual and other < index:
            continue  # the message on `other` names both
        gain = f"{pairing.stranger[index]:.1f} dB against {pairing.partner[index]:.1f} dB with its own target"
        if mutual:
            report.errors.append(f"{names[index][0]}: seems to be exchanged with {names[other][0]} ({gain}).")
        else:
            report.errors.append(f"{names[index][0]}: shows what {names[other][1]} does ({gain}).")
    for index in np.flatnonzero(pairing.beaten & ~pairing.misplaced):
        report.warnings.append(
            f"{names[index][0]}: is more like {names[pairing.nearest[index]][1]} than like its own target "
            f"({pairing.stranger[index]:.1f} against {pairing.partner[index]:.1f} dB); look at both."
        )
    for index in np.flatnonzero(pairing.unlike):
        report.warnings.append(
            f"{names[index][0]}: has hardly anything in common with its target "
            f"({pairing.partner[index]:.1f} dB); look at both."
        )


def _judge_detail(description: SetDescription, part: SplitReport, report: Report) -> None:
    """Report inputs and targets that are exchanged, if it is known which of the two has less detail."""
    ratios = np.array([np.log((one.detail[0] + 1e-3) / (one.detail[1] + 1e-3)) for one in part.measured if one])
    if not len(ratios):
        return
    usual = float(np.median(ratios))
    if description.softer and usual * (-1 if description.softer == "input" else 1) < 0:
        report.errors.append(
            f"{labels(part.items[0])[0]}: it and most other inputs have {'more' if usual > 0 else 'less'} detail than "
            "their targets: the folders of inputs and targets seem to be exchanged."
        )
        return
    odd = np.flatnonzero((ratios * usual < 0) & (np.abs(ratios) > abs(usual) / 2)) if description.softer else ()
    items = [item for item, one in zip(part.items, part.measured, strict=True) if one]
    for index in odd:
        more = "more" if ratios[index] > 0 else "less"
        report.warnings.append(
            f"{labels(items[index])[0]}: has {more} detail than its target, unlike most; was it exchanged with it?"
        )


def _judge_duplicates(description: SetDescription, report: Report) -> None:
    """Report pictures that occur twice, in one split or in two."""
    first_inputs: dict[bytes, tuple[str, Item, tuple[bytes, bytes]]] = {}
    first_targets: dict[bytes, Item] = {}
    for split, part in report.splits.items():
        for item, one in zip(part.items, part.measured, strict=True):
            if one is None:
                continue
            degraded, target = labels(item)
            twin_split, twin, twin_digests = first_inputs.setdefault(one.digests[0], (split, item, one.digests))
            target_twin = first_targets.setdefault(one.digests[1], item)
            if twin is item and target_twin is not item and not description.targets_repeat:
                report.warnings.append(f"{target}: is the same picture as {labels(target_twin)[1]}; is one a copy?")
            elif twin is not item and twin_digests == one.digests:
                where = "" if twin_split == split else f", so that {split} and {twin_split} share pictures"
                report.warnings.append(f"{degraded}: is the same pair of pictures as {labels(twin)[0]}{where}.")
            elif twin is not item:
                report.errors.append(
                    f"{degraded}: is the same picture as {labels(twin)[0]}, but their targets differ; one is a copy."
                )
