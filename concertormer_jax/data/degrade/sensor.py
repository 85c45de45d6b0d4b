"""The camera, base of every synthetic degradation: light falls in, the sensor adds noise, the picture is stored."""

import dataclasses
import functools
import io

import numpy as np
from PIL import Image

_JPEG_BLOCK_PX = 16  # side of JPEG's blocks when chroma is stored at half resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """A still camera: the sensor's noise and JPEG alone. Subclasses also change the light, by overriding `light`.

    A pixel of linear intensity I in [0, 1] gets Gaussian noise of variance a * shot_noise * I + (b * read_noise)**2,
    with a and b drawn uniformly from [0, 1] for each picture. jpeg_quality: bounds (from, to) of Pillow's quality, 1 to
    100, drawn uniformly; () for no JPEG.
    """

    shot_noise: float = 2e-4
    read_noise: float = 1e-3
    jpeg_quality: tuple[int, int] | tuple[()] = ()

    def __post_init__(self) -> None:
        if self.shot_noise < 0 or self.read_noise < 0:
            raise ValueError(f"shot_noise={self.shot_noise} and read_noise={self.read_noise} must not be negative.")
        quality = self.jpeg_quality
        if quality and (len(quality) != 2 or not 1 <= quality[0] <= quality[1] <= 100):
            raise ValueError(f"jpeg_quality={quality} must be () or two numbers from 1 to 100, the lower one first.")

    @property
    def margin_px(self) -> int:
        """Pixels that the call takes off each side."""
        return 0

    def light(self, linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the light on the sensor: linear float32 [H + 2 margin_px, W + 2 margin_px, 3] to [H, W, 3]."""
        return linear

    def __call__(self, sharp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrade: uint8 [H + 2 margin_px, W + 2 margin_px, 3] to uint8 [H, W, 3]."""
        if min(sharp.shape[:2]) <= 2 * self.margin_px:
            raise ValueError(f"sharp {list(sharp.shape)} must exceed twice the margin of {self.margin_px} pixels.")
        light = np.clip(self.light(linear_values()[sharp], rng), 0, 1)
        shot, read = rng.uniform(size=2) * (self.shot_noise, self.read_noise)
        deviation = np.sqrt(np.float32(shot) * light + np.float32(read**2))
        stored = encoded(light + deviation * rng.standard_normal(light.shape, np.float32))
        return jpeg_coded(stored, self.jpeg_quality, rng) if self.jpeg_quality else stored


def encoded(linear: np.ndarray) -> np.ndarray:
    """Return linear light, nominally in [0, 1], as uint8 with the sRGB curve, clipped and rounded."""
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)


def jpeg_coded(image: np.ndarray, quality: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [H, W, 3] after JPEG of a quality drawn from `quality` = (from, to), both included.

    The offset of JPEG's grid of blocks is drawn too, since the image may be a crop.
    """
    chosen = int(rng.integers(quality[0], quality[1] + 1))
    top, left = (int(number) for number in rng.integers(_JPEG_BLOCK_PX, size=2))
    padded = np.pad(image, ((top, 0), (left, 0), (0, 0)), mode="symmetric")
    stream = io.BytesIO()
    Image.fromarray(padded).save(stream, format="JPEG", quality=chosen)
    with Image.open(stream) as decoded:
        return np.asarray(decoded)[top:, left:].copy()


@functools.cache
def linear_values() -> np.ndarray:
    """Return the linear light in [0, 1], float32 [256], of each uint8 value: the inverse of the sRGB curve."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)
