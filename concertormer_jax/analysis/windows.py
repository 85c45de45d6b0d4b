"""From what the user names to what is attributed: the network as a function of pictures, and the pictures."""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from concertormer_jax.data.images import list_images
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import local_path

# The square window of the picture whose restoration is explained, and the part of the picture around it.


class Window(NamedTuple):
    """A square of `size` x `size` pixels, its upper left corner in column x and row y."""

    x: int
    y: int
    size: int

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"{self.x},{self.y},{self.size}"

    def require_within(self, height: int, width: int, name) -> None:
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
    """The window of `size` in the middle of a picture, whether or not it fits in."""
    return Window((width - size) // 2, (height - size) // 2, size)


def cut_around(picture: np.ndarray, window: Window, side: int) -> tuple[np.ndarray, Window]:
    """Cut a square of `side` pixels out of `picture` with `window` in its middle, or as near as the borders allow.

    picture: [H, W, C], with the window within it; side: 0 or at least the window's; an axis shorter than `side` is kept
    whole, and side 0 keeps all. Returns the cut and the window in it.
    """
    height, width = picture.shape[:2]
    left, right = _around(window.x, window.size, width, side)
    top, bottom = _around(window.y, window.size, height, side)
    return picture[top:bottom, left:right], Window(window.x - left, window.y - top, window.size)


def _around(start, size, length, side):
    """Start and end of the cut along one axis."""
    side = min(side or length, length)
    first = min(max(start + size // 2 - side // 2, 0), length - side)
    return first, first + side


def restoring(model) -> Partial:
    """The network of a loaded checkpoint (`checkpoints.LoadedModel`) as a function of images, differentiable.

    float32 [B, H, W, 3] to the finest output, of the same shape and not clipped; without TLC, by `ops.reference`, and
    with the blocks recomputed for the gradient.
    """
    module = model.module.clone(remat=True, implementation="reference")

    def restore(params, images):
        return module.apply({"params": params}, images)[-1]

    return Partial(restore, jax.device_put(model.params))


def named_pictures(source) -> dict[str, Path]:
    """The picture `source`, or all in the folder `source`, by a name without `/` and suffix to call results by.

    Raises UserError if there is none, or if two have the same name.
    """
    source = local_path(source, "IMAGE")
    if source.is_file():
        return {source.stem: source}
    if not source.exists():
        raise UserError(f"{source}: no such picture or folder; check the path.")
    named = {}
    for path in list_images(source):
        name = path.relative_to(source).with_suffix("").as_posix().replace("/", "-")
        if name in named:
            raise UserError(f"{path}: {named[name].name} has the same name; remove one of the two.")
        named[name] = path
    return named
