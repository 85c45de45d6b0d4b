"""Make sharp pictures that are no photographs, to train the small network with: `python -m benchmarks.graphics OUT`.

Drawings, text, charts, noise and gradients, drawn at random: a network that has seen only photographs sharpens what is
sharp already in such pictures.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from concertormer_jax.commands.flags import make_parser, parse_arguments, running
from concertormer_jax.data.images import write_png
from concertormer_jax.runtime.paths import local_path

SIDE_PX = 512
OF_EACH = 12
WORDS = [
    "blur",
    "sharp",
    "light",
    "camera",
    "pixel",
    "of",
    "and",
    "the",
    "window",
    "restore",
    "network",
    "Figure",
    "1.5",
    "2026",
    "File",
    "Edit",
    "View",
    "Help",
]


def _colour(rng):
    return tuple(int(value) for value in rng.integers(0, 256, 3))


def drawing(rng):
    """Lines, ellipses and polygons."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        corners = [tuple(point) for point in rng.integers(0, SIDE_PX, (3, 2)).tolist()]
        kind, width = rng.integers(3), int(rng.integers(1, 5))
        if kind == 0:
            draw.line(corners, _colour(rng), width)
        elif kind == 1:
            (left, top), (right, bottom) = np.sort(corners[:2], axis=0).tolist()
            draw.ellipse((left, top, right, bottom), _colour(rng) if rng.random() < 0.5 else None, _colour(rng), width)
        else:
            draw.polygon(corners, _colour(rng), _colour(rng))
    return np.asarray(picture)


def text(rng):
    """Lines of words in several sizes, dark on light or light on dark."""
    dark, light = rng.integers(0, 90), rng.integers(180, 256)
    paper, ink = (dark, light) if rng.random() < 0.3 else (light, dark)
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), (int(paper),) * 3)
    draw, top = ImageDraw.Draw(picture), 4
    while top < SIDE_PX:
        size = int(rng.integers(9, 30))
        colour = _colour(rng) if rng.random() < 0.2 else (int(ink),) * 3
        draw.text((4, top), " ".join(rng.choice(WORDS, 16)), colour, ImageFont.load_default(size=size))
        if rng.random() < 0.2:
            draw.rectangle((300, top, 500, top + size + 6), _colour(rng), _colour(rng))
        top += size + int(rng.integers(2, 14))
    return np.asarray(picture)


def noise(rng):
    """Independent values, in whole or of a random range around a colour."""
    values = rng.uniform(0, 255, (SIDE_PX, SIDE_PX, 3))
    strength = rng.uniform(0.2, 1)
    return (strength * values + (1 - strength) * rng.uniform(0, 255, 3)).astype(np.uint8)


def gradient(rng):
    """A smooth change between four colours."""
    along = np.linspace(0, 1, SIDE_PX)[:, None, None]
    across = np.linspace(0, 1, SIDE_PX)[None, :, None]
    corners = rng.uniform(0, 255, (4, 3))
    rows = [corners[i] * (1 - across) + corners[i + 1] * across for i in (0, 2)]
    return (rows[0] * (1 - along) + rows[1] * along).astype(np.uint8)


def main() -> None:
    """Write OF_EACH pictures of every kind, the same ones every time."""
    parser = make_parser(__doc__)
    parser.add_argument("out", metavar="OUT", help="folder for the pictures")
    arguments = parse_arguments(parser)
    with running():
        out = local_path(arguments.out, "OUT")
        Path(out).mkdir(parents=True, exist_ok=True)
        for kind in (drawing, text, noise, gradient):
            for index in range(OF_EACH):
                write_png(out / f"{kind.__name__}_{index:02}.png", kind(np.random.default_rng(index)))
        print(f"{4 * OF_EACH} pictures in {out}")


if __name__ == "__main__":
    main()
