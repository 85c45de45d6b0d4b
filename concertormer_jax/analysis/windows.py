"""What an analysis is of: windows of a picture and the part around them, the pictures, the network as a function."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from concertormer_jax.data.images import images_by_name
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath, local_path
from concertormer_jax.weights.checkpoints import LoadedModel


class Window(NamedTuple):
    """A square of `size` x `size` pixels, its upper left corner in column x and row y."""

    x: int
    y: int
    size: int

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"{self.x},{self.y},{self.size}"

    def require_within(self, height: int, width: int, name: object) -> None:
        """Raise UserError, naming the picture `name`, unless the window lies within height x width pixels."""
        if min(self.x, self.y) < 0 or self.x + self.size > width or self.y + self.size > height:
            raise UserError(
                f"{name}: the window {self.text} (x,y,size) does not lie within its {width}x{height} pixels; give "
                "another --window."
            )


def parse_window(text: str) -> Window:
    """Read `x,y,size`. Raises UserError for anything else."""
    parts = text.split(",")
    if len(parts) != 3 or not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts) or int(parts[2]) < 1:
        raise UserError(f"--window={text}: must be x,y,size in pixels, such as 100,80,16.")
    return Window(*map(int, parts))


def middle_window(height: int, width: int, size: int) -> Window:
    """Return the window of `size` in the middle of a picture, even if it does not fit in."""
    return Window((width - size) // 2, (height - size) // 2, size)


def cut_around(picture: np.ndarray, window: Window, side: int) -> tuple[np.ndarray, Window]:
    """Cut a square of `side` pixels out of `picture`, with `window` as near to its middle as the borders allow.

    picture: [H, W, C], with the window within it; side: at least the window's, or 0 for the whole picture. An axis
    shorter than `side` stays whole. Returns the cut and the window in it.
    """
    height, width = picture.shape[:2]
    left, right = _around(window.x, window.size, width, side)
    top, bottom = _around(window.y, window.size, height, side)
    return picture[top:bottom, left:right], Window(window.x - left, window.y - top, window.size)


def _around(start: int, size: int, length: int, side: int) -> tuple[int, int]:
    """Start and end of the cut along one axis of `length` pixels."""
    side = min(side or length, length)
    first = min(max(start + size // 2 - side // 2, 0), length - side)
    return first, first + side


def restoring(model: LoadedModel) -> Partial:
    """Return the network as a differentiable function, float32 images [B, H, W, 3] to the finest output, not clipped.

    It runs without TLC, by `ops.reference`, and recomputes the blocks for the gradient.
    """
    module = model.module.clone(remat=True, implementation="reference")

    def restore(params: Any, images: jax.Array) -> Any:
        return module.apply({"params": params}, images)[-1]

    return Partial(restore, jax.device_put(model.params))


def named_pictures(source: AnyPath) -> dict[str, Path]:
    """Return the picture `source`, or all pictures in the folder `source`, by the name of their results.

    The name is the path without suffix and with `-` for `/`. Raises UserError if there is no picture, or if two have
    the same name.
    """
    source = local_path(source, "IMAGE")
    if source.is_file():
        return {source.stem: source}
    if not source.exists():
        raise UserError(f"{source}: no such picture or folder; check the path.")
    return images_by_name(source, lambda name: name.replace("/", "-"))
