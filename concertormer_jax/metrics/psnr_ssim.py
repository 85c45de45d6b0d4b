"""PSNR and SSIM in the variants of the field's benchmarks, and `score`, which computes them by name.

The functions take (restored, target), uint8 [H, W, 3] of one shape, compute in float64 with the peak value 255, and
return a Python float. The variants of SSIM differ widely on the same picture, so a value needs the variant's name.
"""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np

from concertormer_jax.data.images import to_uint8
from concertormer_jax.metrics.lpips import lpips_alex, require_installed, require_large_enough
from concertormer_jax.metrics.realblur import aligned, psnr_aligned, ssim_aligned
from concertormer_jax.runtime.errors import UserError

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
    return _ssim_3d(restored, target)


def ssim_rgb_2d(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM per channel with an 11x11 Gaussian, mean over the positions where the window lies inside the picture.

    Along an axis shorter than the window, border pixels are repeated and every position counts. Arguments and errors as
    in `psnr_rgb`.
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


def psnr_rgb_unrounded(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR of an output that is not rounded to 8 bits, in dB, as for SIDD.

    restored: float or uint8 [H, W, 3] in [0, 255]; target: uint8 [H, W, 3]. Errors as in `psnr_rgb`.
    """
    _check(restored, target, unrounded=True)
    return _psnr(restored, target)


def ssim_rgb_3d_unrounded(restored: np.ndarray, target: np.ndarray) -> float:
    """`ssim_rgb_3d` of an output that is not rounded to 8 bits. Arguments and errors as in `psnr_rgb_unrounded`."""
    _check(restored, target, unrounded=True)
    return _ssim_3d(restored, target)


def psnr_y_float(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR of the luma without rounding it, in dB, as for super-resolution. Arguments and errors as in `psnr_rgb`."""
    _check(restored, target)
    return _psnr(_luma_float(restored), _luma_float(target))


def ssim_y_float(restored: np.ndarray, target: np.ndarray) -> float:
    """`ssim_y` of the luma without rounding it. Arguments and errors as in `psnr_rgb`."""
    _check(restored, target)
    return _ssim_valid(_luma_float(restored), _luma_float(target))


UNROUNDED_METRICS = {
    "psnr_rgb_unrounded": psnr_rgb_unrounded,
    "ssim_rgb_3d_unrounded": ssim_rgb_3d_unrounded,
}
ALIGNED_METRICS = {  # they take a `realblur.Aligned`, and share it, since aligning takes most of the time
    "psnr_realblur": psnr_aligned,
    "ssim_realblur": ssim_aligned,
    "psnr_rsblur": lambda pair: psnr_aligned(pair.clipped()),
    "ssim_rsblur": lambda pair: ssim_aligned(pair.clipped()),
}
ROUNDED_METRICS = {
    "psnr_rgb": psnr_rgb,
    "ssim_rgb_3d": ssim_rgb_3d,
    "ssim_rgb_2d": ssim_rgb_2d,
    "psnr_y": psnr_y,
    "ssim_y": ssim_y,
    "psnr_y_float": psnr_y_float,
    "ssim_y_float": ssim_y_float,
}
PERCEPTUAL_METRICS = {"lpips_alex": lpips_alex}  # of an optional package
METRICS = (*ROUNDED_METRICS, *UNROUNDED_METRICS, *ALIGNED_METRICS, *PERCEPTUAL_METRICS)


class Scores(NamedTuple):
    """values: by metric; converged: whether RealBlur's alignment converged, None if no metric needs it."""

    values: dict[str, float]
    converged: bool | None


def score(names: Collection[str], restored: np.ndarray, target: np.ndarray) -> Scores:
    """Return the metrics `names` (of `METRICS`) of a restored picture.

    restored: uint8, or float on the scale from 0 to 255 (clipped and rounded for all but the unrounded metrics);
    target: uint8; both [H, W, 3].
    Raises ValueError for any other type or shape, or two different shapes.
    """
    _check(restored, target, unrounded=True)
    rounded = to_uint8(restored)
    pair = aligned(rounded, target) if ALIGNED_METRICS.keys() & set(names) else None
    values = {}
    for name in names:
        if pair is not None and name in ALIGNED_METRICS:
            values[name] = ALIGNED_METRICS[name](pair)
        elif name in UNROUNDED_METRICS:
            values[name] = UNROUNDED_METRICS[name](restored, target)
        else:
            values[name] = (ROUNDED_METRICS | PERCEPTUAL_METRICS)[name](rounded, target)
    return Scores(values, None if pair is None else pair.converged)


def require_known(names: Collection[str], sizes: Iterable[tuple[int, int]] = ()) -> tuple[str, ...]:
    """Return the metric names as a tuple.

    sizes: (height, width) in pixels of the pictures that they are asked of, where these are known. Raises UserError for
    an unknown name, if there is none, for a metric whose package is not installed, and for pictures too small for it.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        wrong = f"unknown metric {', '.join(map(repr, unknown))}" if unknown else "no metric is named"
        raise UserError(f"--metrics: {wrong}; known are {', '.join(METRICS)}.")
    if PERCEPTUAL_METRICS.keys() & set(names):
        require_installed()
        for size in sizes:
            require_large_enough(*size)
    return tuple(names)


def luma(image: np.ndarray) -> np.ndarray:
    """Y of MATLAB's rgb2ycbcr, 16 + (65.481 R + 128.553 G + 24.966 B) / 255, rounded: uint8 [H, W, 3] to [H, W].

    Computed in integers, since exact halves occur, which MATLAB rounds up. Values lie in [16, 235].
    """
    thousands = image.astype(np.int32) @ np.array([65481, 128553, 24966], np.int32)
    return (16 + (thousands + 127500) // 255000).astype(np.uint8)


def _luma_float(image: np.ndarray) -> np.ndarray:
    """`luma` without rounding: uint8 [H, W, 3] to float64 [H, W]."""
    return 16 + image @ np.array([65.481, 128.553, 24.966]) / 255


def _check(restored: Any, target: Any, unrounded: bool = False) -> None:
    for name, image, floats in (("restored", restored, unrounded), ("target", target, False)):
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
        known = dtype == np.uint8 or (floats and getattr(dtype, "kind", None) == "f")
        if not known or shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            allowed = "uint8 or float" if floats else "uint8"
            raise ValueError(f"{name} must be a {allowed} array [H, W, 3], got {dtype} {shape}")
    if restored.shape != target.shape:
        raise ValueError(f"restored {restored.shape} and target {target.shape} differ in shape")


def _psnr(restored: np.ndarray, target: np.ndarray) -> float:
    mean_squared_error = np.mean(np.square(restored.astype(np.float64) - target))
    return math.inf if mean_squared_error == 0 else float(10 * math.log10(PEAK**2 / mean_squared_error))


def _ssim_3d(restored: np.ndarray, target: np.ndarray) -> float:
    across_channels = _replicating_matrix(restored.shape[2])

    def blur(volume: np.ndarray) -> np.ndarray:
        return cv2.transform(_blur(volume), across_channels)

    return float(_ssim_map(restored, target, blur).mean())


def _ssim_valid(restored: np.ndarray, target: np.ndarray) -> float:
    ssim_map = _ssim_map(restored, target, _blur)
    rows, columns = (
        slice(WINDOW_RADIUS, -WINDOW_RADIUS) if length > 2 * WINDOW_RADIUS else slice(None)
        for length in ssim_map.shape[:2]
    )
    return float(ssim_map[rows, columns].mean())


def _ssim_map(restored: np.ndarray, target: np.ndarray, blur: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    x, y = restored.astype(np.float64), target.astype(np.float64)
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = blur(x), blur(y)
    mean_product, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = blur(x * y) - mean_product
    variances = blur(x**2 + y**2) - mean_squares  # the sum of both
    return (2 * mean_product + c1) * (2 * covariance + c2) / ((mean_squares + c1) * (variances + c2))


def _gaussian() -> np.ndarray:
    offsets = np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    return weights / weights.sum()


def _blur(maps: np.ndarray) -> np.ndarray:
    """Gaussian over the first two axes of float64 [H, W] or [H, W, 3], borders replicated."""
    return cv2.sepFilter2D(maps, -1, _gaussian(), _gaussian(), borderType=cv2.BORDER_REPLICATE)


def _replicating_matrix(size: int) -> np.ndarray:
    """The Gaussian over an axis of `size` entries with replicated borders, as a matrix [size, size]."""
    return cv2.sepFilter2D(np.eye(size), -1, np.ones(1), _gaussian(), borderType=cv2.BORDER_REPLICATE)
