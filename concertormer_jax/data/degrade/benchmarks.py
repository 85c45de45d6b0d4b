"""The degradations of benchmarks, on the values of the pixels: Gaussian noise, and bicubic reduction like MATLAB's."""

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """y = x + sigma * n with n ~ N(0, 1) for every value; y is neither clipped nor rounded.

    sigma: bounds (lowest, highest) of the standard deviation on the scale from 0 to 255, drawn uniformly for each
    picture.
    """

    sigma: tuple[float, float] = (0.0, 50.0)

    margin_px: ClassVar[int] = 0
    multiple: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma={self.sigma} must be two numbers that are not negative, the lower one first.")

    def __call__(self, sharp: np.ndarray, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
        """Degrade: uint8 [H, W, 3] to float32 [H, W, 3] around [0, 255]."""
        lowest, highest = self.sigma
        sigma = lowest if lowest == highest else rng.uniform(lowest, highest)
        return (sharp + rng.normal(0, sigma, sharp.shape)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Bicubic:
    """Reduces a picture `scale` times and enlarges it again to its own size.

    So the network maps pictures to pictures of the same size. Rows and columns beyond a multiple of the scale are
    reduced with their reflection.
    """

    scale: int

    margin_px: ClassVar[int] = 0

    @property
    def multiple(self) -> int:
        """Of the sides in pixels of pictures that a benchmark scores."""
        return self.scale

    def __call__(self, sharp: np.ndarray, rng: object = None) -> np.ndarray:
        """Degrade: uint8 [H, W, 3] to uint8 [H, W, 3]. rng is not used."""
        height, width = sharp.shape[:2]
        return imresize(imresize(sharp, 1 / self.scale), self.scale)[:height, :width]


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize uint8 [H, W, C] bicubically to uint8 [ceil(scale H), ceil(scale W), C].

    The cubic has a = -0.5, a reduction widens it by 1 / scale against aliasing, and borders are mirrored with the
    border pixel doubled. As in MATLAB the values are rounded after each axis, of which the rows are the first.
    """
    for axis in (0, 1):
        weights = _weights(image.shape[axis], scale)
        resized = np.moveaxis(np.tensordot(weights, image.astype(np.float64), (1, axis)), 0, axis)
        image = np.floor(np.clip(resized, 0, 255) + 0.5).astype(np.uint8)
    return image


@functools.lru_cache(maxsize=16)
def _weights(size: int, scale: float) -> np.ndarray:
    """The weights [ceil(scale * size), size] with which the new pixels of an axis sum the old ones."""
    narrowing = min(scale, 1)
    new = np.arange(math.ceil(scale * size))
    centre = (new + 0.5) / scale - 0.5
    reach = math.ceil(2 / narrowing) + 1
    places = np.floor(centre)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    parts = _cubic(narrowing * (places - centre[:, None]))
    parts /= parts.sum(axis=1, keepdims=True)
    mirrored = places % (2 * size)
    weights = np.zeros((len(new), size))
    np.add.at(weights, (new[:, None], np.minimum(mirrored, 2 * size - 1 - mirrored)), parts)
    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """The cubic of Keys with a = -0.5: 1 at 0, and 0 at the other whole numbers and beyond 2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))
