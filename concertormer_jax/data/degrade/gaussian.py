"""Additive white Gaussian noise on the values of the pixels, as denoisers are trained and compared on it."""

import dataclasses
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
