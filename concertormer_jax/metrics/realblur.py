"""Metrics of RealBlur and RSBlur: the restored picture is aligned with the target before they are compared.

Two cameras took the sharp and the blurred picture. So the benchmarks scale the brightness of the restored picture,
warp it by a homography (OpenCV's ECC), and compare the two where both have pixels. The values depend a little on the
version of OpenCV.
"""

import dataclasses
import math

import cv2
import numpy as np
import scipy.ndimage

_ITERATIONS = 100
_FILTER_SIZE = 5  # in pixels, of the Gaussian with which ECC smooths both pictures
_SIGMA, _RADIUS = 1.5, 5  # of the SSIM's window


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A restored picture warped onto its target, both float32 [H, W, 3] in about [0, 1], and 0 where `mask` is 0.

    mask: float32 [H, W, 3], 1 where the warped picture covers the target, else 0; converged: whether ECC found a
    homography; without one the picture is only scaled.
    """

    restored: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    converged: bool

    def clipped(self) -> "Aligned":
        """Return the pair with the restored picture clipped to [0, 1], as RSBlur's program scores it."""
        return dataclasses.replace(self, restored=np.clip(self.restored, 0, 1))


def aligned(restored: np.ndarray, target: np.ndarray) -> Aligned:
    """Scale and warp `restored` onto `target`, both uint8 [H, W, 3]."""
    z, x = (image.astype(np.float32) / np.float32(255) for image in (restored, target))
    energy = np.sum(z * z)
    if energy > 0:
        z = np.sum(x * z) / energy * z
    homography, converged = _homography(z, x)
    warped, mask = _warped(z, homography)
    if converged and not _inner(mask).any():  # the homography leaves nothing to compare
        converged = False
        warped, mask = _warped(z, np.eye(3, dtype=np.float32))
    return Aligned(warped * mask, x * mask, mask, converged)


def psnr_aligned(pair: Aligned) -> float:
    """Peak signal-to-noise ratio in dB where the mask is 1; infinite for equal pictures."""
    mean_squared_error = float(np.sum((pair.target - pair.restored) ** 2) / np.sum(pair.mask))
    return math.inf if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


def ssim_aligned(pair: Aligned) -> float:
    """SSIM per channel with an 11x11 Gaussian, mean over the pixels of `_inner` where the mask is 1."""
    inner = _inner(_ssim_map(pair.target, pair.restored) * pair.mask)
    per_channel = inner.sum(axis=(0, 1)) / _inner(pair.mask).sum(axis=(0, 1))
    return float(per_channel.mean())


def _homography(z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, bool]:
    """The homography from positions in x to positions in z, and whether ECC converged; the identity if it did not."""
    template, moved = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.cvtColor(z, cv2.COLOR_RGB2GRAY)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, 0)
    identity = np.eye(3, dtype=np.float32)
    try:
        _, homography = cv2.findTransformECC(  # ty: ignore[no-matching-overload]  # OpenCV takes None for no mask
            template, moved, identity.copy(), cv2.MOTION_HOMOGRAPHY, criteria, None, _FILTER_SIZE
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return identity, False
    return homography, True


def _warped(z: np.ndarray, homography: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z, float32 [H, W, 3], warped, and its mask, 1 where the warped picture has pixels, else 0."""
    size = z.shape[1::-1]
    nearest, cubic = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(z, homography, size, flags=cubic, borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpPerspective(np.ones_like(z), homography, size, flags=nearest, borderMode=cv2.BORDER_CONSTANT)
    return warped, mask


def _inner(maps: np.ndarray) -> np.ndarray:
    """[H, W, 3] without the outer five pixels; an axis of at most ten pixels stays whole."""
    rows, columns = (slice(_RADIUS, -_RADIUS) if length > 2 * _RADIUS else slice(None) for length in maps.shape[:2])
    return maps[rows, columns]


def _ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The SSIM at every pixel of float32 [H, W, 3], with mirrored borders, as scikit-image computes it in float32."""

    def blur(image: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(image, (_SIGMA, _SIGMA, 0), mode="reflect", radius=(_RADIUS, _RADIUS, 0))

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x * mean_x, blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
    )
