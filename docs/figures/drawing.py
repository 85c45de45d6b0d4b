"""What all figures share: colours, boxes, arrows, and how matplotlib's figures become small pictures."""

import io

import numpy as np
from PIL import Image

from concertormer_jax.runtime.outputs import pyplot

INK, PALE, QUERY, KEY, THIRD = "#1c2833", "#eef2f5", "#c0392b", "#2471a3", "#b7950b"
DPI = 100


def figure(width: float, height: float, columns: int = 1, rows: int = 1, **settings):
    """A matplotlib figure of width x height in units of `DPI` pixels, and its axes."""
    return pyplot("the tour").subplots(rows, columns, figsize=(width, height), layout="constrained", **settings)


def canvas(width: float, height: float, x: tuple[float, float], y: tuple[float, float]):
    """A figure with one empty plane of the given ranges to draw on."""
    drawn, axes = figure(width, height)
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return drawn, axes


def finished(drawn) -> Image.Image:
    """Render a matplotlib figure and close it."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=DPI, format="png", facecolor="white")
    pyplot("the tour").close(drawn)
    return Image.open(buffer).convert("RGB")


def box(axes, x: float, y: float, text: str, width=1.0, height=0.5, colour=PALE, size=9):
    """A box with its centre in (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0,rounding_size=0.06"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, facecolor=colour, edgecolor=INK, lw=1))
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axes, start, end, text="", *, colour=INK, dashed=False, size=8, above=0.08):
    """An arrow from `start` to `end`, with a text at its middle."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "linestyle": "--" if dashed else "-", "shrinkA": 0}
    axes.annotate("", end, start, arrowprops=style | {"shrinkB": 0})
    if text:
        x, y = np.add(start, end) / 2
        axes.text(x, y + above, text, ha="center", va="bottom", fontsize=size, color=colour)


def picture(axes, image: np.ndarray, title: str = "", size=9, **settings) -> None:
    """Show an image without ticks under a title."""
    axes.imshow(image, interpolation="nearest", **settings)
    axes.set_title(title, fontsize=size, color=INK)
    axes.set(xticks=[], yticks=[])
