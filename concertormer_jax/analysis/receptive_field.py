"""The effective receptive field: how each input pixel moves the middle of the output (Luo et al., 2016)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def influence_on_middle(restore: Callable, images: jax.Array) -> jax.Array:
    """|gradient| of the output pixel in row H // 2 and column W // 2 with respect to every input pixel.

    The output's channels are summed before the gradient is taken, the absolute values over the input's after.
    restore: a function of images that depends on each image alone; images: [B, H, W, C]. Returns [B, H, W].
    """
    height, width = images.shape[1:3]
    gradients = jax.grad(lambda images: restore(images)[:, height // 2, width // 2].astype(jnp.float32).sum())(images)
    return jnp.abs(gradients).sum(axis=-1)


def radius_holding(field: np.ndarray, share: float) -> float:
    """The smallest radius in pixels about row H // 2 and column W // 2 within which `share` of the field's sum lies.

    field: [H, W], from 0 up. A pixel lies within the radius if its centre does, so one pixel alone has radius 0.
    """
    rows, columns = (np.arange(length) - length // 2 for length in field.shape)
    distances = np.hypot(rows[:, None], columns).ravel()
    order = np.argsort(distances, kind="stable")
    sums = np.cumsum(field.ravel()[order], dtype=np.float64)
    return float(distances[order[np.searchsorted(sums, share * sums[-1])]])
