"""The local attribution map: gradients of the detector, integrated along the blur path (Gu and Dong, CVPR 2021)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from concertormer_jax.analysis.windows import Window
from concertormer_jax.inference.compiled import CompiledPerShape

# The blur path of the local attribution map: from the blurred picture to the picture (Gu and Dong, CVPR 2021).

SMALLEST_VARIANCE = 1e-12  # square pixels; below it a Gaussian on the grid of pixels is a delta in any case


def gaussian_kernels(sigmas: jax.Array, size: int) -> jax.Array:
    """Gaussians sampled at `size` pixels (odd), each with the sum 1; sigma 0 gives a delta.

    sigmas: [N], standard deviations in pixels. Returns [N, size].
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size} must be odd, so that a kernel has a middle")
    offsets = jnp.arange(size) - size // 2
    return jax.nn.softmax(-(offsets**2) / (2 * jnp.maximum(sigmas**2, SMALLEST_VARIANCE))[:, None], axis=-1)


def blurred(images: jax.Array, sigmas: jax.Array, size: int) -> jax.Array:
    """Blur every image by a Gaussian of its own sigma, cut to `size` x `size` pixels; borders are reflected.

    images: [B, H, W, C]; sigmas: [B] in pixels. Returns [B, H, W, C].
    """
    kernels, margin = gaussian_kernels(sigmas, size), size // 2
    for axis in (1, 2):  # the Gaussian of two dimensions is the product of two of one, normalised as it is or as they
        length = images.shape[axis]
        padding = [(margin, margin) if axis == padded else (0, 0) for padded in range(4)]
        padded = jnp.pad(images, padding, mode="reflect")
        shifted = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(size)]
        images = sum(kernels[:, i, None, None, None] * part for i, part in enumerate(shifted))
    return images


def path_points(sigma: float, steps: int) -> np.ndarray:
    """Where the path integral looks, as rows (at, start, end) of standard deviations in pixels.

    The first `steps` rows are the parts of the path from blur `sigma` to 0, the gradient being taken `at` the middle;
    two more are the ends of the path, parts of no length. Returns float32 [steps + 2, 3].
    """
    if steps < 1 or sigma <= 0:
        raise ValueError(f"steps={steps} must be at least 1 and sigma={sigma} positive")
    ends = sigma * (1 - np.arange(steps + 1) / steps)
    parts = np.stack([(ends[:-1] + ends[1:]) / 2, ends[:-1], ends[1:]], axis=1)
    return np.concatenate([parts, np.full((1, 3), sigma), np.zeros((1, 3))]).astype(np.float32)


# The diffusion index: how widely the contributions to a window are spread over the picture.


def strength(contributions: np.ndarray) -> np.ndarray:
    """|sum over the channels| of every pixel, divided by the largest.

    contributions: [H, W, C]. Returns float64 [H, W] in [0, 1]. Raises ValueError where all are 0.
    """
    strengths = np.abs(contributions.sum(axis=2, dtype=np.float64))
    if not strengths.max() > 0:
        raise ValueError("contributions are all 0, so that nothing can be said about their spread")
    return strengths / strengths.max()


def gini(values: np.ndarray) -> float:
    """The Gini coefficient of numbers from 0 up: 0 if they are equal, (n - 1) / n if only one of n is not 0.

    The mean difference of all pairs, relative to twice the mean: sum_ij |v_i - v_j| / (2 n^2 mean(v)).
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    count = ordered.size
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))


def diffusion_index(values: np.ndarray) -> float:
    """(1 - Gini coefficient) x 100 (Gu and Dong, CVPR 2021): 100 if all of n pixels count alike, 100 / n if one does.

    Pictures of different sizes cannot be compared: a neighbourhood of fixed size is a smaller share of a larger one.
    """
    return 100 * (1 - gini(values))


def holding(values: np.ndarray, share: float) -> np.ndarray:
    """The fewest elements of `values` (from 0 up, any shape) that hold `share` of their sum: booleans of its shape."""
    order = np.argsort(values, axis=None)[::-1]
    sums = np.cumsum(values.ravel()[order])
    inside = np.zeros(values.size, bool)
    inside[order[: np.searchsorted(sums, share * sums[-1]) + 1]] = True
    return inside.reshape(values.shape)


# What the local attribution map explains: how much edge a window of the restored picture holds.


def gradient_magnitude(images: jax.Array) -> jax.Array:
    """sqrt((I[y, x] - I[y+1, x])^2 + (I[y, x] - I[y, x+1])^2), with the gradient 0 where it is 0.

    images: [B, H, W, C]. Returns [B, H - 1, W - 1, C]: the last row and column have no neighbour and are left out.
    """
    here = images[:, :-1, :-1]
    squared = jnp.square(here - images[:, 1:, :-1]) + jnp.square(here - images[:, :-1, 1:])
    rises = squared > 0
    return jnp.where(rises, jnp.sqrt(jnp.where(rises, squared, 1)), 0)


def edges_in_window(images: jax.Array, window: jax.Array) -> jax.Array:
    """The detector D of Gu and Dong (CVPR 2021): the sum of `gradient_magnitude` over a window and all channels.

    images: [B, H, W, C]; window: [3], column x, row y and size in pixels (may be traced). Returns [B].
    """
    magnitude = gradient_magnitude(images)
    x, y, size = window
    rows, columns = (jnp.arange(length) for length in magnitude.shape[1:3])
    inside = ((rows >= y) & (rows < y + size))[:, None] & ((columns >= x) & (columns < x + size))
    return jnp.where(inside[:, :, None], magnitude, 0).sum(axis=(1, 2, 3))


SIGMA, STEPS, KERNEL, WINDOW = 1.2, 50, 9, 16  # the authors' settings


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The contribution of every value of a picture to the edges in a window of the restored picture.

    contributions: float64 [H, W, 3], signed; their sum approximates `change`.
    change: the detector on the restored picture minus the detector on what the network makes of the blurred picture.
    """

    window: Window
    contributions: np.ndarray
    change: float

    @property
    def completeness(self) -> float:
        """Sum of the contributions / change: 1 for an exact integral."""
        return float(self.contributions.sum() / self.change)

    @property
    def strength(self) -> np.ndarray:
        """|sum over the channels| of every pixel, divided by the largest: [H, W] in [0, 1]."""
        return strength(self.contributions)

    @property
    def diffusion_index(self) -> float:
        """(1 - Gini coefficient of `strength`) x 100: large where many pixels contribute equally."""
        return diffusion_index(self.strength)


class PathIntegral:
    """Computes attributions for a network; one program is compiled for each size of pictures.

    restore: a function of float32 images [B, H, W, 3] that gives images of the same shape, each depending on its own
        input alone; with many weights it should be `jax.tree_util.Partial(function, weights)`.
    sigma: blur at the start of the path, in pixels; steps: parts of the path; kernel: side of the Gaussian in pixels;
    batch: points of the path that are computed together. log: called with lines on the compilation.
    """

    def __init__(self, restore: Callable, *, sigma=SIGMA, steps=STEPS, kernel=KERNEL, batch=4, log=print):
        points = path_points(sigma, steps)
        surplus = -len(points) % batch  # filled up by more parts of no length
        self._parts = np.concatenate([points, np.zeros((surplus, 3), np.float32)]).reshape(-1, batch, 3)
        self._steps = steps
        self._restore = restore if isinstance(restore, Partial) else Partial(restore)
        self._integrate = CompiledPerShape(_integrate_part(kernel), log)

    @property
    def parts(self) -> int:
        """How many batches one attribution takes."""
        return len(self._parts)

    def __call__(self, image: np.ndarray, window: Window, advance: Callable[[], None] = lambda: None) -> Attribution:
        """Attribute the edges in `window` to `image`, float32 [H, W, 3] in [0, 1]. `advance` is called for each batch.

        Raises ValueError if the window does not lie within the picture.
        """
        height, width = image.shape[:2]
        if min(window) < 0 or window.x + window.size > width or window.y + window.size > height:
            raise ValueError(f"window={window.text} does not lie within the {width}x{height} pixels of the picture")
        images = jnp.broadcast_to(image, (self._parts.shape[1], *image.shape))
        place = jnp.asarray(window)
        contributions, values = np.zeros(image.shape), []
        for part in self._parts:
            value, share = jax.device_get(self._integrate((self._restore, jnp.asarray(part), place), images))
            contributions += share
            values.extend(value)
            advance()
        blurred_value, value = values[self._steps : self._steps + 2]
        return Attribution(window, contributions, float(value) - float(blurred_value))


def _integrate_part(kernel):
    """A function of ((restore, points [B, 3], window [3]), B times the picture) for a batch of the path's parts.

    It gives the detector at the points, [B], and the batch's share of the integral, [H, W, 3]. The gradient in the
    middle of each part is multiplied by the part itself, gamma(end) - gamma(start), in place of the path's derivative:
    of second order like the midpoint rule, and exact where the detector is linear.
    """

    def integrate(arguments, images):
        restore, points, window = arguments
        at, start, end = points.T

        def detected(images):
            values = edges_in_window(restore(images).astype(jnp.float32), window)
            return values.sum(), values

        gradients, values = jax.grad(detected, has_aux=True)(blurred(images, at, kernel))
        moved = blurred(images, end, kernel) - blurred(images, start, kernel)
        return values, (gradients * moved).sum(axis=0)

    return integrate
