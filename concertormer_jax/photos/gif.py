"""Animated GIFs: their frames as they are shown, and frames written as one."""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from concertormer_jax.data.images import displayed_size
from concertormer_jax.runtime.errors import UserError

_DELAY_MS = 100  # of a frame that gives none, as browsers show it
_UNITS = 100  # a GIF counts time in hundredths of a second


class Frame(NamedTuple):
    """An upright picture of a moving one, shown from `start` for `duration` seconds.

    rgb: uint8 [H, W, 3]; alpha: uint8 [H, W], None where all of it is opaque.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    start: Fraction
    duration: Fraction


class GifReader:
    """The frames of a GIF. Raises UserError for a file that is none."""

    notes, damaged = (), 0
    rate, time_base = Fraction(_UNITS), Fraction(1, _UNITS)

    def __init__(self, path):
        self._path = path
        self.height, self.width, self.count = displayed_size(path)
        with Image.open(path) as image:
            self.loop = image.info.get("loop")

    def frames(self) -> Iterator[Frame]:
        """Yield the frames. Raises UserError where the file is damaged."""
        milliseconds = 0
        try:
            with Image.open(self._path) as image:
                for picture in ImageSequence.Iterator(image):
                    delay = int(picture.info.get("duration") or _DELAY_MS)
                    pixels = np.asarray(picture.convert("RGBA"))
                    alpha = None if pixels[:, :, 3].all() else pixels[:, :, 3]
                    yield Frame(pixels[:, :, :3], alpha, Fraction(milliseconds, 1000), Fraction(delay, 1000))
                    milliseconds += delay
        except (OSError, EOFError, SyntaxError) as error:
            raise UserError(f"{self._path}: is damaged ({error}).") from error


def write_gif(path, frames: Iterator[Frame], loop: int | None) -> None:
    """Write `frames`, at least one, to `path`, to be shown `loop` times again, 0 for ever, None for once.

    Each frame has a palette of its own, of at most 256 colours.
    """
    first = next(frames)
    pictures = map(_picture, frames)
    options = {} if loop is None else {"loop": loop}
    if first.alpha is not None:
        options["disposal"] = 2  # a transparent pixel shows no earlier frame
    _picture(first).save(path, format="GIF", save_all=True, append_images=pictures, **options)


def _picture(frame):
    end = round(_UNITS * (frame.start + frame.duration))
    pixels = frame.rgb if frame.alpha is None else np.dstack([frame.rgb, frame.alpha])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.info["duration"] = (end - round(_UNITS * frame.start)) * 1000 // _UNITS  # Pillow counts in milliseconds
    return picture
