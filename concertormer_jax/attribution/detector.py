"""What the local attribution map explains: how much edge a window of the restored picture holds."""

import jax
import jax.numpy as jnp


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
