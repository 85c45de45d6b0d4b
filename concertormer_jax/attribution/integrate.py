"""The local attribution map: gradients of the detector, integrated along the blur path (Gu and Dong, CVPR 2021)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from concertormer_jax.attribution import index
from concertormer_jax.attribution.detector import edges_in_window
from concertormer_jax.attribution.path import blurred, path_points
from concertormer_jax.attribution.window import Window
from concertormer_jax.evaluation.forward import CompiledBySize

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
        return index.strength(self.contributions)

    @property
    def diffusion_index(self) -> float:
        """(1 - Gini coefficient of `strength`) x 100: large where many pixels contribute equally."""
        return index.diffusion_index(self.strength)


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
        self._integrate = CompiledBySize(_integrate_part(kernel), log)

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
