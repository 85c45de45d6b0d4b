"""Checks of the pairs of a set: every file is decoded once, and everything wrong becomes an error or a warning.

Errors stop a preparation; warnings are for the user to judge. Whether inputs lie beside their own targets is seen by
the PSNR between partners against that between strangers. For it all pictures are compared as small grey thumbnails, in
which blur, rain and noise hardly show but the scene does.
"""

import collections
import dataclasses
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from concertormer_jax.data.held_out import sequence_of
from concertormer_jax.data.images import decode_rgb
from concertormer_jax.datasets.descriptions import SetDescription
from concertormer_jax.datasets.layouts import Found, Item, encoded, labels
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.threads import prefetch

_THREADS = min(8, os.cpu_count() or 1)
_SHUFFLED_SHARE = 0.1  # of misplaced inputs; with more, the folder as a whole is wrong
_DETAIL_STEP_PX = 4  # every fourth row and column is looked at

# Of the pairing.
THUMBNAIL_PX = 64
_COARSE_PX = 16  # side of the even smaller pictures that choose the candidates
_CANDIDATES = 3  # strangers that each input is compared with as thumbnails
_ROWS = 512  # inputs that are compared with all targets at a time, which bounds the memory
_BEATEN_DB = 3.0  # by which a stranger must be closer; neighbouring frames of a still scene stay below
_LEAST_GAIN_DB = 0.5  # by which a target must be closer to its input than an even grey
_LEAST_VARIANCE = 1e-2  # of the difference, in squared grey levels: the effect of rounding thumbnails
_FLAT, _FAINT = 1.0, 8.0  # standard deviations in grey levels: below them a picture shows nothing, and little


@dataclasses.dataclass(frozen=True)
class Pairing:
    """How alike the N pairs of a split are, in their order: arrays [N], in dB; NaN for pictures that show nothing.

    partner: PSNR of the input with its own target; stranger: with the most similar target of another pair; nearest: the
    index of that pair. gain: PSNR with the own target minus PSNR with an even grey, NaN for targets with so little
    contrast that noise may hide them.
    """

    partner: np.ndarray
    stranger: np.ndarray
    nearest: np.ndarray
    gain: np.ndarray

    @property
    def usual(self) -> tuple[float, float] | None:
        """The median PSNR of partners, and of strangers; None where all pictures show nothing."""
        if np.isnan(self.partner).all():
            return None
        return float(np.nanmedian(self.partner)), float(np.nanmedian(self.stranger))

    @property
    def beaten(self) -> np.ndarray:
        """Whether the input is clearly closer to the target of another pair, bool [N]."""
        return self.stranger > self.partner + _BEATEN_DB

    @property
    def misplaced(self) -> np.ndarray:
        """Whether the input is beaten, and the input of that other pair is beaten as well, bool [N]."""
        return self.beaten & self.beaten[self.nearest]

    @property
    def unlike(self) -> np.ndarray:
        """Whether the input has hardly anything in common with its target, bool [N]."""
        return (self.gain < _LEAST_GAIN_DB) & ~self.beaten


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Shrink uint8 [H, W, 3] of any shape to grey uint8 [THUMBNAIL_PX, THUMBNAIL_PX] by averaging."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.array(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BOX))


def compare(inputs: np.ndarray, targets: np.ndarray) -> Pairing:
    """Compare the inputs with the targets by their thumbnails, uint8 [N, THUMBNAIL_PX, THUMBNAIL_PX] each, N > 1.

    The target's brightness and contrast are fitted to the input before each PSNR.
    """
    count = len(inputs)
    deviation = inputs.reshape(count, -1).std(axis=1)
    contrast = np.minimum(deviation, targets.reshape(count, -1).std(axis=1))

    def psnr(columns: np.ndarray) -> np.ndarray:
        """Of each input with the target of the index in `columns`, [N]."""
        likeness = np.concatenate([_likeness(inputs[rows], targets[columns[rows]]) for rows in _chunks(count)])
        residual = deviation**2 * (1 - likeness**2)  # variance that the fitted target leaves
        return 10 * np.log10(255**2 / np.maximum(residual, _LEAST_VARIANCE))

    everyone = np.arange(count)
    neighbours = [(everyone + 1) % count, (everyone - 1) % count]
    candidates = np.concatenate([_most_alike(_shrunk(inputs), _shrunk(targets)).T, neighbours])
    closeness = np.stack([psnr(columns) for columns in candidates])
    best = closeness.argmax(axis=0)
    partner, stranger = psnr(everyone), closeness[best, everyone]
    gain = partner - 10 * np.log10(255**2 / np.maximum(deviation**2, _LEAST_VARIANCE))
    partner[contrast < _FLAT] = stranger[contrast < _FLAT] = np.nan
    gain[contrast < _FAINT] = np.nan
    return Pairing(partner, stranger, candidates[best, everyone], gain)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]


def _likeness(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Correlation of `some[n]` with `others[n]`, [N]; negative ones become 0."""
    return np.einsum("np,np->n", _standardised(some), _standardised(others)).clip(0, 1)


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails scaled to mean 0 and norm 1, float32 [N, pixels]; zeros for flat ones."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _shrunk(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails of _COARSE_PX pixels a side."""
    factor = THUMBNAIL_PX // _COARSE_PX
    return thumbnails.reshape(-1, _COARSE_PX, factor, _COARSE_PX, factor).mean(axis=(2, 4), dtype=np.float32)


def _most_alike(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For every input the indices of the _CANDIDATES other targets that it correlates with most, [N, candidates]."""
    count = len(inputs)
    wanted = min(_CANDIDATES, count - 1)
    inputs, targets = _standardised(inputs), _standardised(targets)
    result = np.empty((count, wanted), np.int64)
    for rows in _chunks(count):
        likeness = inputs[rows] @ targets.T
        own = np.arange(rows.start, rows.start + len(likeness))
        likeness[own - rows.start, own] = -np.inf
        result[rows] = np.argpartition(-likeness, wanted - 1, axis=1)[:, :wanted]
    return result


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
