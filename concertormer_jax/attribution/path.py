"""The blur path of the local attribution map: from the blurred picture to the picture (Gu and Dong, CVPR 2021)."""

import jax
import jax.numpy as jnp
import numpy as np

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
