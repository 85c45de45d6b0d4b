"""Whether inputs lie beside their own targets: the PSNR between partners against that between strangers.

All pictures are compared as small grey thumbnails, in which blur, rain and noise hardly show but the scene does.
"""

import dataclasses

import numpy as np
from PIL import Image

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
    def usual(self) -> tuple[float, float]:
        """The median PSNR of partners, and of strangers."""
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
