"""Command: a sheet that shows every synthetic degradation on one photograph.

python -m concertormer_jax.data.contact_sheet PHOTO OUT.jpg [--seed=0]
"""

import argparse
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from concertormer_jax import errors
from concertormer_jax.arguments import parse_arguments, whole
from concertormer_jax.data.degradations import make_degradation
from concertormer_jax.data.images import read_rgb
from concertormer_jax.data.rain import Rain
from concertormer_jax.evaluation.outputs import require_file_writable, require_separate
from concertormer_jax.files import written_atomically

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


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m concertormer_jax.data.contact_sheet", description=__doc__)
    parser.add_argument("photo", metavar="PHOTO", help="a sharp photograph")
    parser.add_argument("out", metavar="OUT", help="the sheet: .jpg or .png")
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="another seed draws other paths and drops (default: 0)"
    )
    flags = parse_arguments(parser, arguments)
    with errors.reported():
        if not flags.out.lower().endswith((".jpg", ".jpeg", ".png")):
            raise errors.UserError(f"{flags.out}: must end in .jpg or .png.")
        require_separate([flags.out], [flags.photo])
        require_file_writable(flags.out)
        photo = read_rgb(flags.photo)
        try:
            sheet = contact_sheet(photo, flags.seed)
        except ValueError as error:
            raise errors.UserError(f"{flags.photo}: {error}; give a larger one.") from error
        with written_atomically(flags.out) as temporary:
            sheet.save(temporary, quality=90)
        print(f"{len(SHOWN)} pictures in {flags.out}")


if __name__ == "__main__":
    main()
