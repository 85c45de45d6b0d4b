"""A sheet that shows every synthetic degradation on one photograph."""

import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from concertormer_jax.data.degrade import make_degradation
from concertormer_jax.data.degrade.rain import Rain

_CELL = (320, 240)  # width and height of a picture on the sheet, in pixels
_COLUMNS, _BAR, _GAP = 3, 24, 6
_STRONG_NOISE = {"shot_noise": 1e-2, "read_noise": 2e-2}
SHOWN = {
    "sharp": None,
    "shake": make_degradation("shake", min_length_px=14),
    "frames": make_degradation("frames", min_length_px=14),
    "rain, light": Rain(max_streaks=1.0),
    "rain, heavy": Rain(min_streaks=12.0),
    "noise, strong": make_degradation("noise", **_STRONG_NOISE),
    "noise, JPEG quality 15": make_degradation("noise", jpeg_quality=(15, 15)),
    "shake, JPEG quality 25": make_degradation("shake", min_length_px=14, jpeg_quality=(25, 25)),
    "rain, strong noise, JPEG 25": make_degradation("rain", **_STRONG_NOISE, jpeg_quality=(25, 25)),
}


def contact_sheet(photo: np.ndarray, seed: int = 0) -> Image.Image:
    """Return the middle of a photograph under every entry of `SHOWN`, each below its name.

    photo: uint8 [H, W, 3], larger than the cells and their margins. Raises ValueError if it is not.
    """
    width, height = _CELL
    rows = -(-len(SHOWN) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (width + _GAP) - _GAP, rows * (height + _BAR + _GAP) - _GAP), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for number, (label, degradation) in enumerate(SHOWN.items()):
        margin = degradation.margin_px if degradation else 0
        top, left = photo.shape[0] // 2 - height // 2 - margin, photo.shape[1] // 2 - width // 2 - margin
        if top < 0 or left < 0:
            raise ValueError(f"its {photo.shape[1]}x{photo.shape[0]} pixels must exceed {width}x{height} and margins")
        cut = photo[top : top + height + 2 * margin, left : left + width + 2 * margin]
        if degradation:
            cut = degradation(cut, np.random.default_rng([seed, zlib.crc32(label.encode())]))
        corner = (number % _COLUMNS * (width + _GAP), number // _COLUMNS * (height + _BAR + _GAP))
        draw.text((corner[0] + 4, corner[1] + _BAR / 2), label, (20, 20, 20), font, anchor="lm")
        sheet.paste(Image.fromarray(cut), (corner[0], corner[1] + _BAR))
    return sheet
