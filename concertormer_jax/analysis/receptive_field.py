"""The effective receptive field (Luo et al., NeurIPS 2016): |gradient| of the output's middle by each input pixel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


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
