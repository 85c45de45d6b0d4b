"""Image quality by named variants, on uint8 [H, W, 3] pictures, in float64.

Every function takes `(restored, target)` of one shape and returns a Python float. Two SSIM variants differ by up to
0.3 on one picture, so a number is worth something only together with its variant's name. Peak value: 255, always.
"""

import math

import cv2
import numpy as np

from concertormer_jax.errors import UserError

PEAK = 255.0
WINDOW_RADIUS = 5
WINDOW_SIGMA = 1.5


def psnr_rgb(restored: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, in dB; infinite for equal pictures.

    restored, target: uint8 [H, W, 3]. Raises ValueError for any other type or shape, or two different shapes.
    """
    _check(restored, target)
    return _psnr(restored, target)


def ssim_rgb_3d(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM of the picture as a volume (H, W, 3): 11x11x11 Gaussian, replicate padding, mean of the whole map.

    This is the SSIM of NAFNet's and Concertormer's tables. Arguments and errors as in `psnr_rgb`.
    """
    _check(restored, target)
    across_channels = _replicating_matrix(restored.shape[2])

    def blur(volume):
        return cv2.transform(_blur(volume), across_channels)

    return float(_ssim_map(restored, target, blur).mean())


def ssim_rgb_2d(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM per channel with an 11x11 Gaussian, mean over the positions where the window lies inside the picture.

    An axis shorter than the window has no such position; along it the border pixel is repeated and every position
    counts. Arguments and errors as in `psnr_rgb`.
    """
    _check(restored, target)
    return _ssim_valid(restored, target)


def psnr_y(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR of the luma (`luma`), in dB. Arguments and errors as in `psnr_rgb`."""
    _check(restored, target)
    return _psnr(luma(restored), luma(target))


def ssim_y(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM of the luma (`luma`), window and region as in `ssim_rgb_2d`. Arguments and errors as in `psnr_rgb`."""
    _check(restored, target)
    return _ssim_valid(luma(restored), luma(target))


METRICS = {
    "psnr_rgb": psnr_rgb,
    "ssim_rgb_3d": ssim_rgb_3d,
    "ssim_rgb_2d": ssim_rgb_2d,
    "psnr_y": psnr_y,
    "ssim_y": ssim_y,
}


def metrics_named(names) -> dict:
    """Return {name: function} for the given names, in their order. Raises UserError for an unknown name or none."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        wrong = f"unknown metric {', '.join(map(repr, unknown))}" if unknown else "no metric is named"
        raise UserError(f"--metrics: {wrong}; known are {', '.join(METRICS)}.")
    return {name: METRICS[name] for name in names}


def luma(image: np.ndarray) -> np.ndarray:
    """Y of MATLAB's rgb2ycbcr, 16 + (65.481 R + 128.553 G + 24.966 B) / 255, rounded: uint8 [H, W, 3] to [H, W].

    In integers, because exact halves occur; they are rounded up, as MATLAB does. Values lie in [16, 235].
    """
    thousands = image.astype(np.int32) @ np.array([65481, 128553, 24966], np.int32)
    return (16 + (thousands + 127500) // 255000).astype(np.uint8)


def _check(restored, target):
    for name, image in (("restored", restored), ("target", target)):
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"{name} must be a uint8 array [H, W, 3], got {dtype} {shape}")
    if restored.shape != target.shape:
        raise ValueError(f"restored {restored.shape} and target {target.shape} differ in shape")


def _psnr(restored, target):
    mean_squared_error = np.mean(np.square(restored.astype(np.float64) - target))
    return math.inf if mean_squared_error == 0 else float(10 * math.log10(PEAK**2 / mean_squared_error))


def _ssim_valid(restored, target):
    ssim_map = _ssim_map(restored, target, _blur)
    rows, columns = (
        slice(WINDOW_RADIUS, -WINDOW_RADIUS) if length > 2 * WINDOW_RADIUS else slice(None)
        for length in ssim_map.shape[:2]
    )
    return float(ssim_map[rows, columns].mean())


def _ssim_map(restored, target, blur):
    x, y = restored.astype(np.float64), target.astype(np.float64)
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = blur(x), blur(y)
    mean_product, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = blur(x * y) - mean_product
    variances = blur(x**2 + y**2) - mean_squares  # the sum of both is all that SSIM needs
    return (2 * mean_product + c1) * (2 * covariance + c2) / ((mean_squares + c1) * (variances + c2))


def _gaussian():
    offsets = np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    return weights / weights.sum()


def _blur(maps):
    """Gaussian over the first two axes of float64 [H, W] or [H, W, 3], borders replicated."""
    return cv2.sepFilter2D(maps, -1, _gaussian(), _gaussian(), borderType=cv2.BORDER_REPLICATE)


def _replicating_matrix(size):
    """The Gaussian over an axis of `size` entries with replicated borders, as a matrix [size, size]."""
    return cv2.sepFilter2D(np.eye(size), -1, np.ones(1), _gaussian(), borderType=cv2.BORDER_REPLICATE)
