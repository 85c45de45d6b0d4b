"""Blur by a camera that moves during the exposure, computed in linear light."""

import dataclasses
import math

import cv2
import numpy as np
import scipy.fft

from concertormer_jax.data.degrade.sensor import Camera

_PUSHES = 64  # steps of the random walk during one exposure
_FRAME_COUNTS = (7, 9, 11, 13)  # that GoPro's blurred pictures are means of


@dataclasses.dataclass(frozen=True)
class CameraShake(Camera):
    """Motion blur of a shaken camera.

    The length of a blur, twice the largest distance in pixels of a point's path from its centroid, is drawn uniformly
    between the two bounds.
    """

    min_length_px: float = 3.0
    max_length_px: float = 14.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_lengths(self)

    @property
    def margin_px(self) -> int:
        """Pixels that the call takes off each side: half the longest path, and one for the interpolation."""
        return math.ceil(self.max_length_px / 2) + 1

    def kernel(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a blur kernel, float32 [2 margin_px + 1, 2 margin_px + 1], sum 1, its centroid in the middle."""
        length = rng.uniform(self.min_length_px, self.max_length_px)
        return rasterised(shake_path(length, rng), self.margin_px)

    def light(self, linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return correlated(linear, self.kernel(rng))


@dataclasses.dataclass(frozen=True)
class FrameAverage(Camera):
    """Blur as in the GoPro set: the mean, in linear light, of consecutive frames of a moving camera.

    7, 9, 11 or 13 frames are shifted along a path and turned about the centre; the middle one is the sharp picture. The
    length of the path, twice the largest shift from the middle frame in pixels, is drawn uniformly between the two
    bounds, the largest turn between 0 and `max_turn_px` pixels at the corners.
    """

    min_length_px: float = 3.0
    max_length_px: float = 14.0
    max_turn_px: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_lengths(self)
        if self.max_turn_px < 0:
            raise ValueError(f"max_turn_px={self.max_turn_px} must not be negative.")

    @property
    def margin_px(self) -> int:
        """Pixels that the call takes off each side: the farthest that a corner moves, and one for the interpolation."""
        return math.ceil(self.max_length_px / 2 + self.max_turn_px) + 1

    def light(self, linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = int(rng.choice(_FRAME_COUNTS))
        shifts = _from_the_middle(shake_path(1, rng), count) * rng.uniform(self.min_length_px, self.max_length_px) / 2
        turns = _from_the_middle(shake_path(1, rng)[:, :1], count)[:, 0] * rng.uniform(0, self.max_turn_px)
        height, width = (length - 2 * self.margin_px for length in linear.shape[:2])
        centre = np.array([width - 1, height - 1]) / 2
        total = np.zeros((height, width, 3), np.float32)
        for (down, right), turn in zip(shifts, turns, strict=True):
            angle = turn / max(np.linalg.norm(centre), 1)
            rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            offset = centre - rotation @ centre + self.margin_px + np.array([right, down])
            total += cv2.warpAffine(
                linear,
                np.column_stack([rotation, offset]),
                (width, height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        return total / count


def _from_the_middle(path: np.ndarray, count: int) -> np.ndarray:
    """`count` evenly spaced points of a path, relative to the middle one and scaled to a largest distance of 1."""
    points = path[np.linspace(0, len(path) - 1, count).round().astype(int)]
    points = points - points[count // 2]
    return points / np.linalg.norm(points, axis=1).max()


def shake_path(length_px: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the path of a point during the exposure: [N, 2] (y, x) in pixels at equal times, centroid 0.

    It is a random walk with inertia: v[t] = inertia * v[t - 1] + noise, so that paths range from almost straight (much
    inertia) to knotted (little). The farthest point is `length_px` / 2 from the centroid.
    """
    inertia = rng.uniform(0.7, 0.98)
    pushes = rng.standard_normal((_PUSHES, 2))
    velocity = np.empty_like(pushes)
    velocity[0] = pushes[0] / math.sqrt(1 - inertia**2)  # the stationary distribution
    for step in range(1, _PUSHES):
        velocity[step] = inertia * velocity[step - 1] + pushes[step]
    corners = np.cumsum(velocity, axis=0)
    # Interpolation makes the points so dense that the rasterised path has no gaps.
    times = np.linspace(0, _PUSHES - 1, 8 * _PUSHES)
    path = np.stack([np.interp(times, np.arange(_PUSHES), corners[:, axis]) for axis in (0, 1)], axis=1)
    path -= path.mean(axis=0)
    return path * (length_px / 2 / np.linalg.norm(path, axis=1).max())


def rasterised(path: np.ndarray, radius_px: int) -> np.ndarray:
    """Return the share of its time that a path spends at each pixel: float32 [K, K] of sum 1, K = 2 radius_px + 1.

    path: [N, 2], within `radius_px` - 1 of 0. Bilinear weights spread each point over four pixels, which keeps the
    centroid.
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
    # The transform wraps around at the image's size, which reaches only positions that are cut off.
    shape = (scipy.fft.next_fast_len(height, real=True), scipy.fft.next_fast_len(width, real=True))
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    spectrum = scipy.fft.rfft2(planes, shape) * np.conj(scipy.fft.rfft2(kernel, shape))
    result = scipy.fft.irfft2(spectrum, shape)[:, : height - size + 1, : width - size + 1]
    return np.ascontiguousarray(np.moveaxis(result, 0, 2))


def _require_lengths(degradation: "CameraShake | FrameAverage") -> None:
    low, high = degradation.min_length_px, degradation.max_length_px
    if not 0 <= low <= high:
        raise ValueError(f"0 <= min_length_px <= max_length_px, got {low} and {high}.")
