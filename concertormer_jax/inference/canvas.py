"""The fixed sizes in which photographs are restored, so that no picture asks for a program of its own."""

from collections.abc import Iterable

from concertormer_jax.ops.image import padded_size
from concertormer_jax.tiles import tile_grid

CANVASES_PX = (384, 768)  # multiples of 128, which every network's grid of tiles divides


def canvas_px(sizes: Iterable[tuple[int, int]], multiple: int) -> int:
    """Return the side of the square canvas for pictures of `sizes` (height, width): the smallest that holds each.

    The largest serves for all larger pictures, which are restored in several tiles of it. multiple: that of the
    network; a canvas is a multiple of `tile_grid(multiple)`.
    """
    longest = max(max(size) for size in sizes)
    fitting = (canvas for canvas in CANVASES_PX if canvas >= longest)
    return padded_size(next(fitting, CANVASES_PX[-1]), tile_grid(multiple))
