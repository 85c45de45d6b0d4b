"""Metrics of the RealBlur benchmark: the restored picture is aligned with the target before they are compared.

The camera that took the sharp picture is not quite where the one that took the blurred picture is, so the benchmark
scales the restored picture's brightness, warps it by a homography (OpenCV's ECC), and compares where both exist. The
values depend a little on the version of OpenCV.
"""

import dataclasses
import math

import cv2
import numpy as np
import scipy.ndimage

_ITERATIONS = 100
_FILTER_SIZE = 5  # of the Gaussian that ECC smooths both pictures with, in pixels
_SIGMA, _RADIUS = 1.5, 5  # of the SSIM's window


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A restored picture on its target, both float32 [H, W, 3] in about [0, 1] and 0 where `mask` is.

    mask: float32 [H, W, 3], 1 where the warped picture covers the target; converged: whether ECC found a homography;
    if not, the picture is scaled and not warped.
    """

    restored: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    converged: bool


def aligned(restored: np.ndarray, target: np.ndarray) -> Aligned:
    """Scale and warp `restored` onto `target`, uint8 [H, W, 3] both."""
    z, x = (np.float32(image) / np.float32(255) for image in (restored, target))
    energy = np.sum(z * z)
    if energy > 0:
        z = np.sum(x * z) / energy * z
    homography, converged = _homography(z, x)
    warped, mask = _warped(z, homography)
    if converged and not _inner(mask).any():  # ECC ran away: nothing is left to compare
        converged = False
        warped, mask = _warped(z, np.eye(3, dtype=np.float32))
    return Aligned(warped * mask, x * mask, mask, converged)


def psnr_aligned(pair: Aligned) -> float:
    """Peak signal-to-noise ratio in dB where the mask is 1; infinite for equal pictures."""
    mean_squared_error = float(np.sum((pair.target - pair.restored) ** 2) / np.sum(pair.mask))
    return math.inf if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


def ssim_aligned(pair: Aligned) -> float:
    """SSIM with an 11x11 Gaussian per channel where the mask is 1, without the outer five pixels.

    Along an axis of at most ten pixels nothing is left out.
    """
    inner = _inner(_ssim_map(pair.target, pair.restored) * pair.mask)
    per_channel = inner.sum(axis=(0, 1)) / _inner(pair.mask).sum(axis=(0, 1))
    return float(per_channel.mean())


def psnr_realblur(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR in dB after alignment, uint8 [H, W, 3] both."""
    return psnr_aligned(aligned(restored, target))


def ssim_realblur(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM after alignment, uint8 [H, W, 3] both."""
    return ssim_aligned(aligned(restored, target))


def _homography(z, x):
    """The homography from positions in x to positions in z, and whether ECC converged; the identity if it did not."""
    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (x, z)]
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, 0)
    identity = np.eye(3, dtype=np.float32)
    try:
        _, homography = cv2.findTransformECC(
            *greys, identity.copy(), cv2.MOTION_HOMOGRAPHY, criteria, inputMask=None, gaussFiltSize=_FILTER_SIZE
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return identity, False
    return homography, True


def _warped(z, homography):
    """z (float32 [H, W, 3]) warped, with its mask: 1 where the warped picture has pixels, else 0."""
    size = z.shape[1::-1]
    nearest, cubic = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(z, homography, size, flags=cubic, borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpPerspective(np.ones_like(z), homography, size, flags=nearest, borderMode=cv2.BORDER_CONSTANT)
    return warped, mask


def _inner(maps):
    """[H, W, 3] without the outer five pixels; along an axis of at most ten, nothing is left out."""
    rows, columns = (slice(_RADIUS, -_RADIUS) if length > 2 * _RADIUS else slice(None) for length in maps.shape[:2])
    return maps[rows, columns]


def _ssim_map(x, y):
    """The SSIM at every pixel of float32 [H, W, 3], borders mirrored (scikit-image's with Gaussian weights)."""

    def blur(image):
        return scipy.ndimage.gaussian_filter(image, (_SIGMA, _SIGMA, 0), mode="reflect", radius=(_RADIUS, _RADIUS, 0))

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x * mean_x, blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
    )
