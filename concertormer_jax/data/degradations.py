"""Synthetic degradations of sharp photographs, by name.

A degradation is a frozen dataclass with `margin_px` and a call `(sharp uint8 [H + 2 margin_px, W + 2 margin_px, 3],
rng) -> uint8 [H, W, 3]`, aligned with the middle of `sharp`: the caller crops with that margin. First the light changes
(blur, rain), then the sensor adds its noise, both in linear light; then the picture is stored, possibly as a JPEG.
"""

from concertormer_jax.data.camera import Camera
from concertormer_jax.data.rain import Rain
from concertormer_jax.data.shake import CameraShake, FrameAverage
from concertormer_jax.errors import UserError

DEGRADATIONS = {"shake": CameraShake, "frames": FrameAverage, "rain": Rain, "noise": Camera}
_BLURS = ("shake", "frames")


def make_degradation(
    name: str,
    *,
    min_length_px: float = CameraShake.min_length_px,
    max_length_px: float = CameraShake.max_length_px,
    shot_noise: float = Camera.shot_noise,
    read_noise: float = Camera.read_noise,
    jpeg_quality: tuple[int, ...] = Camera.jpeg_quality,
) -> Camera:
    """Return the degradation `name`: one of `DEGRADATIONS`.

    min_length_px, max_length_px: of the path of a blur, unused by the others; the rest as in `Camera`.
    Raises UserError for an unknown name and values that make no sense.
    """
    if name not in DEGRADATIONS:
        raise UserError(f"degradation {name!r} is unknown; choose one of {', '.join(DEGRADATIONS)}.")
    settings = {"shot_noise": shot_noise, "read_noise": read_noise, "jpeg_quality": tuple(jpeg_quality)}
    if name in _BLURS:
        settings |= {"min_length_px": min_length_px, "max_length_px": max_length_px}
    try:
        return DEGRADATIONS[name](**settings)
    except ValueError as error:
        raise UserError(f"degradation {name!r}: {error}") from error
