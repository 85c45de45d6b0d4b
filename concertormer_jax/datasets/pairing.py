"""Whether inputs lie beside their own targets: the PSNR between partners against that between strangers.

Everything is done on small grey pictures, in which blur, rain and noise hardly show but the scene does.
"""

import dataclasses

import numpy as np
from PIL import Image

THUMBNAIL_PX = 64
_COARSE_PX = 16  # of the pictures that pick the strangers to look at
_CANDIDATES = 3
_ROWS = 512  # pictures compared with all others at a time
_BEATEN_DB = 3.0  # by which a stranger must be closer; neighbouring frames of a still scene stay below
_EXPLAINED_DB = 0.5  # by which a target must be closer to its input than an even grey
_LEAST_VARIANCE = 1e-2  # of the difference, in squared grey levels: what rounding the thumbnails makes
_FLAT, _FAINT = 1.0, 8.0  # standard deviation, in grey levels, below which a picture shows nothing, and little


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What was found of the N pairs of a split, in their order. PSNR in dB; NaN for pictures that show nothing.

    partner: of the input with its own target; stranger: with the target, of those of the others, that it is most like;
    nearest: the index of that one; explained: how much closer the own target is than an even grey, NaN for targets
    with so little contrast that noise may hide them.
    """

    partner: np.ndarray
    stranger: np.ndarray
    nearest: np.ndarray
    explained: np.ndarray

    @property
    def usual(self) -> tuple[float, float]:
        """The median PSNR of partners, and of strangers."""
        return tuple(float(np.median(values[~np.isnan(values)])) for values in (self.partner, self.stranger))

    @property
    def beaten(self) -> np.ndarray:
        """Whether the input is clearly closer to the target of another pair, bool [N]."""
        return self.stranger > self.partner + _BEATEN_DB

    @property
    def misplaced(self) -> np.ndarray:
        """Whether it is and that target does not fit its own input either, as after an exchange, bool [N]."""
        return self.beaten & self.beaten[self.nearest]

    @property
    def unlike(self) -> np.ndarray:
        """Whether the input has hardly anything in common with its target, bool [N]."""
        return (self.explained < _EXPLAINED_DB) & ~self.beaten


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Shrink uint8 [H, W, 3] to grey uint8 [THUMBNAIL_PX, THUMBNAIL_PX] by averaging, whatever its shape."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.array(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BOX))


def compare(inputs: np.ndarray, targets: np.ndarray) -> Pairing:
    """Compare the inputs with the targets by their thumbnails, uint8 [N, THUMBNAIL_PX, THUMBNAIL_PX] each, N > 1.

    The PSNR of an input with a target is that after the target's brightness and contrast were fitted to the input's.
    """
    count = len(inputs)
    deviation = inputs.reshape(count, -1).std(axis=1)
    contrast = np.minimum(deviation, targets.reshape(count, -1).std(axis=1))

    def psnr(columns):
        likeness = np.concatenate([_likeness(inputs[rows], targets[columns[rows]]) for rows in _chunks(count)])
        left = deviation**2 * (1 - likeness**2)  # variance that the fitted target does not explain
        return 10 * np.log10(255**2 / np.maximum(left, _LEAST_VARIANCE))

    everyone = np.arange(count)
    neighbours = [(everyone + 1) % count, (everyone - 1) % count]
    candidates = np.concatenate([_most_alike(_shrunk(inputs), _shrunk(targets)).T, neighbours])
    closeness = np.stack([psnr(columns) for columns in candidates])
    best = closeness.argmax(axis=0)
    partner, stranger = psnr(everyone), closeness[best, everyone]
    explained = partner - 10 * np.log10(255**2 / np.maximum(deviation**2, _LEAST_VARIANCE))
    partner[contrast < _FLAT] = stranger[contrast < _FLAT] = np.nan
    explained[contrast < _FAINT] = np.nan
    return Pairing(partner, stranger, candidates[best, everyone], explained)


def _chunks(count) -> list[slice]:
    """Rows that are compared at a time, so that little memory is needed for large sets."""
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]


def _likeness(some, others) -> np.ndarray:
    """Correlation of the pictures `some` with those `others`, one by one, [N] in [0, 1]; opposites count as 0."""
    return np.einsum("np,np->n", _standardised(some), _standardised(others)).clip(0, 1)


def _standardised(thumbnails) -> np.ndarray:
    """Mean 0 and length 1, float32 [N, pixels]; zeros for flat pictures."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _shrunk(thumbnails) -> np.ndarray:
    factor = THUMBNAIL_PX // _COARSE_PX
    return thumbnails.reshape(-1, _COARSE_PX, factor, _COARSE_PX, factor).mean(axis=(2, 4), dtype=np.float32)


def _most_alike(inputs, targets) -> np.ndarray:
    """Return for every input the _CANDIDATES other indices whose targets it correlates with most, [N, candidates]."""
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
