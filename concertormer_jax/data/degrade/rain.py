"""Rain: a veil of far drops and streaks of near ones, computed in linear light."""

import dataclasses
import math

import numpy as np
from scipy.ndimage import gaussian_filter

from concertormer_jax.data.degrade.motion_blur import correlated, rasterised
from concertormer_jax.data.degrade.sensor import Camera

_SLANT_RADIANS = math.radians(35)  # largest angle between a picture's streaks and the vertical
_SPREAD_RADIANS = math.radians(6)  # largest deviation of one layer's streaks from that angle
_DARKEST_SKY = 0.1
# Each layer: (shortest, longest) streak in pixels, standard deviation across a streak in pixels, (least, greatest)
# opacity, share of all streaks.
_LAYERS = (
    ((8, 16), 0.4, (0.1, 0.3), 0.6),  # far: many, short, thin and faint
    ((14, 28), 0.6, (0.2, 0.6), 0.3),
    ((24, 44), 0.9, (0.3, 0.8), 0.1),  # near: few, long, wide and bright
)


@dataclasses.dataclass(frozen=True)
class Rain(Camera):
    """Streaks before a scene behind a veil.

    Veil: light = (1 - v) * scene + v * sky, with v drawn from [0, max_veil]. Then for each of three layers of streaks,
    the farthest first: light = (1 - opacity) * light + opacity * streak. The number of streaks per 1,000 pixels is
    drawn between the two bounds, uniformly in its logarithm.
    """

    min_streaks: float = 0.5
    max_streaks: float = 12.0
    max_veil: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_streaks <= self.max_streaks or not 0 <= self.max_veil < 1:
            raise ValueError(
                f"0 < min_streaks <= max_streaks and 0 <= max_veil < 1, got {self.min_streaks}, {self.max_streaks} and "
                f"{self.max_veil}."
            )

    def light(self, linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # The sky lights the drops: about as bright as the brightest parts of the scene, also at night.
        sky = np.float32(max(rng.uniform(0.6, 1) * np.quantile(linear, 0.98), _DARKEST_SKY))
        veil = np.float32(rng.uniform(0, self.max_veil))
        light = (1 - veil) * linear + veil * sky
        density = math.exp(rng.uniform(math.log(self.min_streaks), math.log(self.max_streaks))) / 1000
        slant = rng.uniform(-_SLANT_RADIANS, _SLANT_RADIANS)
        streak_light = min(1, sky * rng.uniform(1, 1.5))  # a drop gathers light from a wide field of view
        for lengths, width, opacities, share in _LAYERS:
            opacity = streaks(
                linear.shape[:2],
                share * density,
                length_px=rng.uniform(*lengths),
                width_px=width,
                angle=slant + rng.uniform(-_SPREAD_RADIANS, _SPREAD_RADIANS),
                opacities=opacities,
                rng=rng,
            )[:, :, None]
            light = (1 - opacity) * light + opacity * np.float32(streak_light)
        return light


def streaks(
    shape: tuple[int, ...],
    density: float,
    *,
    length_px: float,
    width_px: float,
    angle: float,
    opacities: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw one layer of parallel streaks as opacity in [0, 1): float32 [H, W] for `shape` (H, W).

    density: streaks per pixel; width_px: standard deviation across; angle: radians from the vertical; opacities:
    (least, greatest) of a single streak in its middle. Where streaks cross, their transparencies multiply.
    """
    radius = math.ceil(length_px / 2 + 3 * width_px) + 1
    along = np.linspace(-length_px / 2, length_px / 2, 8 * math.ceil(length_px))
    line = rasterised(np.stack([along * math.cos(angle), along * math.sin(angle)], axis=1), radius)
    line = gaussian_filter(line, width_px, truncate=3)
    line /= line.max()
    wide = (shape[0] + 2 * radius, shape[1] + 2 * radius)
    drops = (rng.random(wide, np.float32) < density) * rng.uniform(*opacities, wide).astype(np.float32)
    # A sum of -log(1 - opacity) is a product of transparencies.
    depth = correlated(-np.log1p(-drops)[:, :, None], line)[:, :, 0]
    return -np.expm1(-np.maximum(depth, 0))
