"""Synthetic degradations of sharp photographs, by name.

A degradation is a frozen dataclass with `margin_px` and a call (sharp uint8 [H + 2 margin_px, W + 2 margin_px, 3],
rng) -> uint8 [H, W, 3], aligned with the middle of `sharp`: the caller cuts crops that are larger by this margin. The
call of a `Camera` first changes the light (blur, rain) and then adds the sensor's noise, both in linear light; then it
stores the picture in 8 bits, possibly as a JPEG. Those of benchmarks (`GaussianNoise`, which returns float32, and
`Bicubic`) work on the values of the pixels.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from concertormer_jax.data.degrade.benchmarks import Bicubic, GaussianNoise
from concertormer_jax.data.degrade.motion_blur import CameraShake, FrameAverage
from concertormer_jax.data.degrade.rain import Rain
from concertormer_jax.data.degrade.sensor import Camera
from concertormer_jax.runtime.errors import UserError

DEGRADATIONS = {
    "shake": CameraShake,
    "frames": FrameAverage,
    "rain": Rain,
    "noise": Camera,
    "gaussian": GaussianNoise,
    "bicubic_x2": functools.partial(Bicubic, 2),
    "bicubic_x4": functools.partial(Bicubic, 4),
}


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Draws one of `choices` for every picture with equal chance; one that is listed twice has twice the chance."""

    choices: tuple[Camera | GaussianNoise | Bicubic, ...]

    @property
    def margin_px(self) -> int:
        """Pixels that the call takes off each side: the largest margin of the choices."""
        return max(choice.margin_px for choice in self.choices)

    def __call__(self, sharp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrade: uint8 [H + 2 margin_px, W + 2 margin_px, 3] to [H, W, 3] of the type that the choice returns."""
        chosen = self.choices[int(rng.integers(len(self.choices)))]
        spare = self.margin_px - chosen.margin_px
        return chosen(sharp[spare : sharp.shape[0] - spare, spare : sharp.shape[1] - spare], rng)


Degradation = Camera | GaussianNoise | Bicubic | OneOf


def make_degradation(
    names: str,
    *,
    min_length_px: float = CameraShake.min_length_px,
    max_length_px: float = CameraShake.max_length_px,
    shot_noise: float = Camera.shot_noise,
    read_noise: float = Camera.read_noise,
    jpeg_quality: tuple[int, int] | tuple[()] = Camera.jpeg_quality,
    sigma: tuple[float, float] = GaussianNoise.sigma,
) -> Degradation:
    """Return the degradation named `names`, of `DEGRADATIONS`, or for several names between commas one `OneOf` these.

    min_length_px, max_length_px: of the path of a blur, in pixels; sigma: of "gaussian"; other degradations do not use
    them. The rest as in `Camera`. Raises UserError for an unknown name, for values out of range, and for a JPEG quality
    with a degradation that stores no JPEG.
    """
    sensor: dict[str, Any] = {"shot_noise": shot_noise, "read_noise": read_noise, "jpeg_quality": tuple(jpeg_quality)}
    path = {"min_length_px": min_length_px, "max_length_px": max_length_px}
    settings: dict[str, dict[str, Any]] = {
        "shake": sensor | path,
        "frames": sensor | path,
        "rain": sensor,
        "noise": sensor,
        "gaussian": {"sigma": tuple(sigma)},
    }
    choices = []
    for name in map(str.strip, names.split(",")):
        if name not in DEGRADATIONS:
            raise UserError(f"degradation {name!r} is unknown; choose one of {', '.join(DEGRADATIONS)}.")
        if jpeg_quality and "jpeg_quality" not in settings.get(name, {}):
            raise UserError(f"degradation {name!r} stores no JPEG; leave the quality of JPEG empty.")
        try:
            choices.append(DEGRADATIONS[name](**settings.get(name, {})))
        except ValueError as error:
            raise UserError(f"degradation {name!r}: {error}") from error
    return choices[0] if len(choices) == 1 else OneOf(tuple(choices))


def input_dtype(names: str) -> type:
    """Return the type that holds the inputs of all of `names`, separated by commas as in `make_degradation`."""
    return np.float32 if "gaussian" in map(str.strip, names.split(",")) else np.uint8
