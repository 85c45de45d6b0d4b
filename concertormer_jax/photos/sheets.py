"""Pictures for the eye: before beside after, the sheet of the worst, and a photograph under every degradation."""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from concertormer_jax.data.degrade import make_degradation
from concertormer_jax.data.degrade.rain import Rain

ERROR_GAIN = 4
_CELL = (480, 360)  # width and height of the largest picture on a sheet, in pixels
_BACKGROUND, _INK = (255, 255, 255), (20, 20, 20)
_GAP = 8
_BAR = 30
_FONT_SIZE = 20
# The sheet of degradations.
_SMALL_CELL = (320, 240)  # width and height of a picture, in pixels
_COLUMNS, _SMALL_BAR, _SMALL_GAP = 3, 24, 6
_STRONG_NOISE: dict[str, Any] = {"shot_noise": 1e-2, "read_noise": 2e-2}
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


def side_by_side(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> Image.Image:
    """Set uint8 pictures [H, W, 3] of one height in a row at full size, each under its label."""
    height = pictures[0].shape[0]
    bar = max(_BAR, height // 24)  # so that the labels of a large picture can be read when it is looked at as a whole
    font = ImageFont.load_default(size=_FONT_SIZE * bar / _BAR)
    # A picture narrower than its label gets the label's width.
    widths = [
        max(picture.shape[1], int(font.getlength(label)) + _GAP)
        for picture, label in zip(pictures, labels, strict=True)
    ]
    sheet = Image.new("RGB", (sum(widths) + _GAP * (len(widths) - 1), bar + height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    left = 0
    for picture, label, width in zip(pictures, labels, widths, strict=True):
        draw.text((left + _GAP // 2, bar / 2), label, _INK, font, anchor="lm")
        sheet.paste(Image.fromarray(picture), (left, bar))
        left += width + _GAP
    return sheet


def error_picture(restored: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return |restored - target|, mean over the channels, times `ERROR_GAIN`: uint8 [H, W, 3], black where equal."""
    error = np.abs(restored.astype(np.float32) - target).mean(axis=2, keepdims=True)
    return np.repeat(np.clip(np.rint(ERROR_GAIN * error), 0, 255).astype(np.uint8), 3, axis=2)


def comparison_sheet(rows: Iterable[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> Image.Image:
    """Set rows of (caption, input, output, target) below each other, with the error as fourth picture.

    The pictures are uint8 [H, W, 3], equal in size within a row; large ones are reduced to fit 480x360 pixels.
    """
    labels = ("input", "output", "target", f"error of the output x{ERROR_GAIN}")
    strips = [
        (
            caption,
            side_by_side([_reduced(p) for p in (degraded, output, target, error_picture(output, target))], labels),
        )
        for caption, degraded, output, target in rows
    ]
    width = max(strip.width for _, strip in strips) + 2 * _GAP
    sheet = Image.new("RGB", (width, _GAP + sum(_BAR + strip.height + 2 * _GAP for _, strip in strips)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_SIZE)
    top = _GAP
    for caption, strip in strips:
        draw.rectangle((0, top, width, top + _BAR), (225, 230, 240))
        draw.text((_GAP, top + _BAR / 2), _shortened(caption, width - 2 * _GAP, font), _INK, font, anchor="lm")
        sheet.paste(strip, (_GAP, top + _BAR))
        top += _BAR + strip.height + 2 * _GAP
    return sheet


def _reduced(picture):
    height, width = picture.shape[:2]
    scale = min(_CELL[0] / width, _CELL[1] / height, 1)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _shortened(text, width, font):
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


def contact_sheet(photo: np.ndarray, seed: int = 0) -> Image.Image:
    """Return the middle of a photograph under every entry of `SHOWN`, each below its name.

    photo: uint8 [H, W, 3], larger than the cells and their margins. Raises ValueError if it is not.
    """
    (width, height), bar, gap = _SMALL_CELL, _SMALL_BAR, _SMALL_GAP
    rows = -(-len(SHOWN) // _COLUMNS)
    sheet = Image.new(
        "RGB",
        (_COLUMNS * (width + gap) - gap, rows * (height + bar + gap) - gap),
        (255, 255, 255),
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for number, (label, degradation) in enumerate(SHOWN.items()):
        margin = degradation.margin_px if degradation else 0
        top, left = photo.shape[0] // 2 - height // 2 - margin, photo.shape[1] // 2 - width // 2 - margin
        if top < 0 or left < 0:
            raise ValueError(f"its {photo.shape[1]}x{photo.shape[0]} pixels must exceed {width}x{height} and margins")
        cut = photo[top : top + height + 2 * margin, left : left + width + 2 * margin]
        if degradation:
            cut = degradation(cut, np.random.default_rng([seed, zlib.crc32(label.encode())]))
        corner = (
            number % _COLUMNS * (width + gap),
            number // _COLUMNS * (height + bar + gap),
        )
        draw.text((corner[0] + 4, corner[1] + bar / 2), label, (20, 20, 20), font, anchor="lm")
        sheet.paste(Image.fromarray(cut), (corner[0], corner[1] + bar))
    return sheet
