"""Synthetic degradations of sharp photographs, by name.

A degradation is a frozen dataclass with `margin_px` and a call (sharp uint8 [H + 2 margin_px, W + 2 margin_px, 3],
rng) -> uint8 [H, W, 3], aligned with the middle of `sharp`: the caller cuts crops that are larger by this margin. The
call first changes the light (blur, rain) and then adds the sensor's noise, both in linear light; then it stores the
picture in 8 bits, possibly as a JPEG.
"""

import dataclasses
from typing import Any

import numpy as np

from concertormer_jax.data.degrade.motion_blur import CameraShake, FrameAverage
from concertormer_jax.data.degrade.rain import Rain
from concertormer_jax.data.degrade.sensor import Camera
from concertormer_jax.runtime.errors import UserError

DEGRADATIONS = {"shake": CameraShake, "frames": FrameAverage, "rain": Rain, "noise": Camera}
_BLURS = ("shake", "frames")


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Draws one of `choices` for every picture with equal chance; one that is listed twice has twice the chance."""

    choices: tuple[Camera, ...]

    @property
    def margin_px(self) -> int:
        """Pixels that the call takes off each side: the largest margin of the choices."""
        return max(choice.margin_px for choice in self.choices)

    def __call__(self, sharp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrade: uint8 [H + 2 margin_px, W + 2 margin_px, 3] to uint8 [H, W, 3]."""
        chosen = self.choices[int(rng.integers(len(self.choices)))]
        spare = self.margin_px - chosen.margin_px
        return chosen(sharp[spare : sharp.shape[0] - spare, spare : sharp.shape[1] - spare], rng)


Degradation = Camera | OneOf


def make_degradation(
    names: str,
    *,
    min_length_px: float = CameraShake.min_length_px,
    max_length_px: float = CameraShake.max_length_px,
    shot_noise: float = Camera.shot_noise,
    read_noise: float = Camera.read_noise,
    jpeg_quality: tuple[int, int] | tuple[()] = Camera.jpeg_quality,
) -> Degradation:
    """Return the degradation named `names`, of `DEGRADATIONS`, or for several names between commas one `OneOf` these.

    min_length_px, max_length_px: of the path of a blur, in pixels; other degradations do not use them. The rest as in
    `Camera`. Raises UserError for an unknown name and for values out of range.
    """
    sensor: dict[str, Any] = {"shot_noise": shot_noise, "read_noise": read_noise, "jpeg_quality": tuple(jpeg_quality)}
    path = {"min_length_px": min_length_px, "max_length_px": max_length_px}
    choices = []
    for name in map(str.strip, names.split(",")):
        if name not in DEGRADATIONS:
            raise UserError(f"degradation {name!r} is unknown; choose one of {', '.join(DEGRADATIONS)}.")
        try:
            choices.append(DEGRADATIONS[name](**sensor, **(path if name in _BLURS else {})))
        except ValueError as error:
            raise UserError(f"degradation {name!r}: {error}") from error
    return choices[0] if len(choices) == 1 else OneOf(tuple(choices))
