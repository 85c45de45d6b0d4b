"""Which pixels of the input matter to a part of the result: local attribution maps, and the effective receptive field.

Local attribution maps (Gu and Dong, CVPR 2021): with the network F, the detector D (`edges_in_window`), and the path
gamma from the blurred picture (`blurred`) to the picture, the contributions are the integral of
grad(D(F(gamma))) * gamma' along the path (`PathIntegral`). The diffusion index says how widely they are spread.

Effective receptive field (Luo et al., NeurIPS 2016): |gradient| of the output's middle by each input pixel.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from concertormer_jax.analysis.windows import Window
from concertormer_jax.inference.compiled import CompiledPerShape

SIGMA, STEPS, KERNEL, WINDOW = 1.2, 50, 9, 16  # the settings of Gu and Dong
SMALLEST_VARIANCE = 1e-12  # square pixels; a Gaussian of less is a delta on the grid of pixels


def gaussian_kernels(sigmas: jax.Array, size: int) -> jax.Array:
    """Return Gaussians sampled at `size` pixels (odd), each with sum 1; sigma 0 gives a delta.

    sigmas: [N], standard deviations in pixels. Returns [N, size]. Raises ValueError for an even size.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size} must be odd, so that a kernel has a middle")
    offsets = jnp.arange(size) - size // 2
    return jax.nn.softmax(-(offsets**2) / (2 * jnp.maximum(sigmas**2, SMALLEST_VARIANCE))[:, None], axis=-1)


def blurred(images: jax.Array, sigmas: jax.Array, size: int) -> jax.Array:
    """Blur every image with a Gaussian of its own sigma, cut off at `size` x `size` pixels; borders are reflected.

    images: [B, H, W, C]; sigmas: [B] in pixels. Returns [B, H, W, C].
    """
    kernels, margin = gaussian_kernels(sigmas, size), size // 2
    for axis in (1, 2):  # the two-dimensional Gaussian is the product of two one-dimensional ones
        length = images.shape[axis]
        padding = [(margin, margin) if axis == padded else (0, 0) for padded in range(4)]
        padded = jnp.pad(images, padding, mode="reflect")
        shifted = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(size)]
        weighted = [kernels[:, i, None, None, None] * part for i, part in enumerate(shifted)]
        images = functools.reduce(jnp.add, weighted)
    return images


def path_points(sigma: float, steps: int) -> np.ndarray:
    """Return the parts of the blur path as rows (at, start, end) of standard deviations in pixels.

    The first `steps` rows divide the path from blur `sigma` to 0 evenly; `at`, where the gradient is taken, is the
    middle. Two more rows are the ends of the path, parts of length 0. Returns float32 [steps + 2, 3].
    Raises ValueError for less than one step and for a sigma that is not positive.
    """
    if steps < 1 or sigma <= 0:
        raise ValueError(f"steps={steps} must be at least 1 and sigma={sigma} positive")
    ends = sigma * (1 - np.arange(steps + 1) / steps)
    parts = np.stack([(ends[:-1] + ends[1:]) / 2, ends[:-1], ends[1:]], axis=1)
    return np.concatenate([parts, np.full((1, 3), sigma), np.zeros((1, 3))]).astype(np.float32)


def strength(contributions: np.ndarray) -> np.ndarray:
    """Return |sum over the channels| of every pixel, divided by the largest.

    contributions: [H, W, C]. Returns float64 [H, W] in [0, 1]. Raises ValueError where all are 0.
    """
    strengths = np.abs(contributions.sum(axis=2, dtype=np.float64))
    if not strengths.max() > 0:
        raise ValueError("contributions are all 0, so that nothing can be said about their spread")
    return strengths / strengths.max()


def gini(values: np.ndarray) -> float:
    """Return the Gini coefficient of nonnegative numbers, sum_ij |v_i - v_j| / (2 n^2 mean(v)).

    values: of any shape, not all 0. The result is 0 if all are equal, and (n - 1) / n if only one of n is not 0.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    count = ordered.size
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))


def diffusion_index(values: np.ndarray) -> float:
    """Return (1 - Gini coefficient) x 100: 100 if all of n pixels contribute equally, 100 / n if only one contributes.

    values: nonnegative, of any shape, such as `strength`. The index depends on the size of the picture: a
    neighbourhood of fixed size is a smaller share of a larger picture.
    """
    return 100 * (1 - gini(values))


def holding(values: np.ndarray, share: float) -> np.ndarray:
    """Return which elements are the fewest that hold `share` of the sum, booleans of the shape of `values` >= 0."""
    order = np.argsort(values, axis=None)[::-1]
    sums = np.cumsum(values.ravel()[order])
    inside = np.zeros(values.size, bool)
    inside[order[: np.searchsorted(sums, share * sums[-1]) + 1]] = True
    return inside.reshape(values.shape)


def gradient_magnitude(images: jax.Array) -> jax.Array:
    """Return sqrt((I[y, x] - I[y+1, x])^2 + (I[y, x] - I[y, x+1])^2), whose derivative is 0 where it is 0.

    images: [B, H, W, C]. Returns [B, H - 1, W - 1, C], without the last row and column, which lack a neighbour.
    """
    here = images[:, :-1, :-1]
    squared = jnp.square(here - images[:, 1:, :-1]) + jnp.square(here - images[:, :-1, 1:])
    rises = squared > 0
    return jnp.where(rises, jnp.sqrt(jnp.where(rises, squared, 1)), 0)


def edges_in_window(images: jax.Array, window: jax.Array) -> jax.Array:
    """Return the detector D of Gu and Dong: the sum of `gradient_magnitude` over a window and all channels.

    images: [B, H, W, C]; window: [3], column x, row y and size in pixels, possibly traced. Returns [B].
    """
    magnitude = gradient_magnitude(images)
    x, y, size = window
    rows, columns = (jnp.arange(length) for length in magnitude.shape[1:3])
    inside = ((rows >= y) & (rows < y + size))[:, None] & ((columns >= x) & (columns < x + size))
    return jnp.where(inside[:, :, None], magnitude, 0).sum(axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The contribution of every value of a picture to the edges in a window of the restored picture.

    contributions: float64 [H, W, 3], signed; their sum approximates `change`.
    change: D(F(picture)) - D(F(blurred picture)).
    """

    window: Window
    contributions: np.ndarray
    change: float

    @property
    def completeness(self) -> float:
        """sum(contributions) / change, which is 1 for an exact integral."""
        return float(self.contributions.sum() / self.change)

    @property
    def strength(self) -> np.ndarray:
        """|sum over the channels| of every pixel, divided by the largest: [H, W] in [0, 1]."""
        return strength(self.contributions)

    @property
    def diffusion_index(self) -> float:
        """That of `strength`; it is large if many pixels contribute equally."""
        return diffusion_index(self.strength)


class PathIntegral:
    """Computes attributions for a network. It compiles one program for each size of pictures.

    restore: a function of float32 images [B, H, W, 3] that gives images of the same shape, each depending on its own
        input alone; with many weights it should be `jax.tree_util.Partial(function, weights)`.
    sigma: blur at the start of the path, in pixels; steps: parts of the path; kernel: side of the Gaussian in pixels;
    batch: parts of the path that are computed together. log: called with lines on the compilation.
    """

    def __init__(
        self,
        restore: Callable[[jax.Array], jax.Array],
        *,
        sigma: float = SIGMA,
        steps: int = STEPS,
        kernel: int = KERNEL,
        batch: int = 4,
        log: Callable[[str], object] = print,
    ):
        points = path_points(sigma, steps)
        surplus = -len(points) % batch  # parts of length 0 fill the last batch
        self._parts = np.concatenate([points, np.zeros((surplus, 3), np.float32)]).reshape(-1, batch, 3)
        self._steps = steps
        self._restore = restore if isinstance(restore, Partial) else Partial(restore)
        self._integrate = CompiledPerShape(_integrate_part(kernel), log)

    @property
    def parts(self) -> int:
        """How many batches one attribution takes."""
        return len(self._parts)

    def __call__(self, image: np.ndarray, window: Window, advance: Callable[[], object] = lambda: None) -> Attribution:
        """Attribute the edges in `window` to `image`, float32 [H, W, 3] in [0, 1]. Calls `advance` after each batch.

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


def _integrate_part(kernel: int) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return a function of ((restore, points [B, 3], window [3]), the picture B times) for a batch of the path's parts.

    It returns the detector at the points, [B], and the batch's share of the integral, [H, W, 3]: the sum over the parts
    of gradient(middle) * (gamma(end) - gamma(start)). This is of second order, like the midpoint rule, and exact where
    the detector is linear.
    """

    def integrate(arguments: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        restore, points, window = arguments
        at, start, end = points.T

        def detected(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = edges_in_window(restore(images).astype(jnp.float32), window)
            return values.sum(), values

        gradients, values = jax.grad(detected, has_aux=True)(blurred(images, at, kernel))
        moved = blurred(images, end, kernel) - blurred(images, start, kernel)
        return values, (gradients * moved).sum(axis=0)

    return integrate


def influence_on_middle(restore: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Return sum_c |d(sum_k output[H // 2, W // 2, k]) / d(input[y, x, c])| for every input pixel.

    restore: images to images of the same shape, each depending on its own input alone; images: [B, H, W, C]. Returns
    [B, H, W].
    """
    height, width = images.shape[1:3]
    gradients = jax.grad(lambda images: restore(images)[:, height // 2, width // 2].astype(jnp.float32).sum())(images)
    return jnp.abs(gradients).sum(axis=-1)


def radius_holding(field: np.ndarray, share: float) -> float:
    """Return the smallest radius in pixels about row H // 2 and column W // 2 that holds `share` of the field's sum.

    field: [H, W], nonnegative. A pixel lies within the radius if its centre does, so a single pixel has radius 0.
    """
    rows, columns = (np.arange(length) - length // 2 for length in field.shape)
    distances = np.hypot(rows[:, None], columns).ravel()
    order = np.argsort(distances, kind="stable")
    sums = np.cumsum(field.ravel()[order], dtype=np.float64)
    return float(distances[order[np.searchsorted(sums, share * sums[-1])]])
