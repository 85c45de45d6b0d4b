"""Synthetic degradations of sharp photographs.

A degradation is a frozen dataclass with `margin_px` and a call `(sharp uint8 [H + 2 margin_px, W + 2 margin_px, 3],
rng) -> uint8 [H, W, 3]`, aligned with the middle of `sharp`: the caller crops with that margin.
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.fft

_PUSHES = 64  # of the hand during one exposure


@dataclasses.dataclass(frozen=True)
class CameraShake:
    """Motion blur of a shaken camera, then sensor noise, both in linear light.

    The length of a blur (twice the farthest that the path of a point is from its centroid, in pixels) is drawn
    uniformly between the two bounds. A pixel of linear intensity I in [0, 1] gets Gaussian noise of variance
    shot_noise * I + read_noise**2, each scaled by one number per picture drawn uniformly from [0, 1].
    """

    min_length_px: float = 3.0
    max_length_px: float = 14.0
    shot_noise: float = 2e-4
    read_noise: float = 1e-3

    def __post_init__(self):
        if not 0 <= self.min_length_px <= self.max_length_px:
            raise ValueError(f"0 <= min_length_px <= max_length_px, got {self.min_length_px} and {self.max_length_px}.")
        if self.shot_noise < 0 or self.read_noise < 0:
            raise ValueError(f"shot_noise={self.shot_noise} and read_noise={self.read_noise} must not be negative.")

    @property
    def margin_px(self) -> int:
        """Pixels that the call takes off each side: the reach of the longest path, and one for its interpolation."""
        return math.ceil(self.max_length_px / 2) + 1

    def kernel(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a blur kernel, float32 [2 margin_px + 1, 2 margin_px + 1], sum 1, its centroid in the middle."""
        length = rng.uniform(self.min_length_px, self.max_length_px)
        return rasterised(shake_path(length, rng), self.margin_px)

    def __call__(self, sharp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Blur and add noise: uint8 [H + 2 margin_px, W + 2 margin_px, 3] to uint8 [H, W, 3]."""
        if min(sharp.shape[:2]) <= 2 * self.margin_px:
            raise ValueError(f"sharp {list(sharp.shape)} must exceed twice the margin of {self.margin_px} pixels.")
        blurred = np.clip(correlated(_linear_values()[sharp], self.kernel(rng)), 0, 1)
        shot, read = rng.uniform(size=2) * (self.shot_noise, self.read_noise)
        deviation = np.sqrt(np.float32(shot) * blurred + np.float32(read**2))
        return encoded(blurred + deviation * rng.standard_normal(blurred.shape, np.float32))


def shake_path(length_px: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the path of a point during the exposure: [N, 2] (y, x) in pixels at equal times, centroid 0.

    A random walk with inertia: the velocity decays towards 0 and is pushed at random, so that paths range from almost
    straight (much inertia) to knotted (little). Its farthest point is `length_px` / 2 from the centroid.
    """
    inertia = rng.uniform(0.7, 0.98)
    pushes = rng.standard_normal((_PUSHES, 2))
    velocity = np.empty_like(pushes)
    velocity[0] = pushes[0] / math.sqrt(1 - inertia**2)  # the spread that the walk settles at
    for step in range(1, _PUSHES):
        velocity[step] = inertia * velocity[step - 1] + pushes[step]
    corners = np.cumsum(velocity, axis=0)
    # Points in between, dense enough that the rasterised path has no gaps.
    times = np.linspace(0, _PUSHES - 1, 8 * _PUSHES)
    path = np.stack([np.interp(times, np.arange(_PUSHES), corners[:, axis]) for axis in (0, 1)], axis=1)
    path -= path.mean(axis=0)
    return path * (length_px / 2 / np.linalg.norm(path, axis=1).max())


def rasterised(path: np.ndarray, radius_px: int) -> np.ndarray:
    """Return the share of its time that a path ([N, 2], within `radius_px` - 1 of 0) spends at each pixel: [K, K].

    K = 2 radius_px + 1; float32, sum 1. Each point is shared among its four neighbours, which keeps the centroid.
    """
    size = 2 * radius_px + 1
    corner = np.floor(path).astype(np.int64)
    fraction = path - corner
    kernel = np.zeros(size * size)
    for down in (0, 1):
        for right in (0, 1):
            weights = np.abs(1 - down - fraction[:, 0]) * np.abs(1 - right - fraction[:, 1])
            places = (corner[:, 0] + down + radius_px) * size + corner[:, 1] + right + radius_px
            kernel += np.bincount(places, weights, minlength=size * size)
    return (kernel / kernel.sum()).reshape(size, size).astype(np.float32)


def correlated(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate float32 [H, W, C] with `kernel` [K, K] where it fits: float32 [H - K + 1, W - K + 1, C]."""
    size = kernel.shape[0]
    height, width = image.shape[:2]
    # A circular transform of the image's own size is enough: what wraps around falls outside the valid region.
    shape = (scipy.fft.next_fast_len(height, real=True), scipy.fft.next_fast_len(width, real=True))
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    spectrum = scipy.fft.rfft2(planes, shape) * np.conj(scipy.fft.rfft2(kernel, shape))
    result = scipy.fft.irfft2(spectrum, shape)[:, : height - size + 1, : width - size + 1]
    return np.ascontiguousarray(np.moveaxis(result, 0, 2))


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light, nominally in [0, 1], to uint8 with the sRGB curve, clipped and rounded."""
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)


@functools.cache
def _linear_values() -> np.ndarray:
    """Linear light in [0, 1], float32 [256], of each uint8 value: the inverse of the sRGB curve."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)
