"""Cutting and turning crops: pure functions of arrays and a random generator."""

import numpy as np


def reflected_window(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return image[top : top + height, left : left + width], reflecting at the borders where the window leaves it.

    image: [H, W, C]; top and left may be negative. Equal to a window of `numpy.pad(..., mode="reflect")`, which
    reflects repeatedly where one reflection is not enough and repeats the only pixel of an axis of length 1.
    """
    rows, columns = image.shape[:2]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return image[top : top + height, left : left + width]
    return image[_reflected(top, height, rows)[:, None], _reflected(left, width, columns)[None, :]]


def random_corner(height: int, width: int, crop_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw (top, left) of a crop that lies inside the image; 0 on an axis shorter than the crop."""
    return int(rng.integers(max(height - crop_px, 0) + 1)), int(rng.integers(max(width - crop_px, 0) + 1))


def grid_corners(height: int, width: int, crop_px: int, step_px: int) -> list[tuple[int, int]]:
    """Return (top, left) of the crops that cover a picture row by row, `step_px` apart; the last of each axis ends at
    the border. An axis shorter than the crop has one, at 0.
    """

    def starts(length):
        inside = list(range(0, max(length - crop_px, 0) + 1, step_px))
        return inside if inside[-1] + crop_px >= length else [*inside, length - crop_px]

    return [(top, left) for top in starts(height) for left in starts(width)]


def random_orientation(images, rng: np.random.Generator, *, flip: bool, rotate: bool) -> tuple[np.ndarray, ...]:
    """Mirror and turn all `images` ([H, W, C] each) alike: left-right and top-bottom if `flip`, quarters if `rotate`.

    The same numbers are drawn whatever the switches say, so that a switch changes nothing else about a sample.
    """
    mirror_columns, mirror_rows = rng.integers(2, size=2)
    quarters = int(rng.integers(4))
    result = []
    for image in images:
        if flip and mirror_columns:
            image = image[:, ::-1]
        if flip and mirror_rows:
            image = image[::-1]
        if rotate:
            image = np.rot90(image, quarters)
        result.append(np.ascontiguousarray(image))
    return tuple(result)


def _reflected(start: int, length: int, size: int) -> np.ndarray:
    """Indices [length] of positions start, start + 1, ... in an axis of `size` that is reflected without end."""
    period = max(2 * (size - 1), 1)
    positions = np.arange(start, start + length) % period
    return np.minimum(positions, period - positions)
