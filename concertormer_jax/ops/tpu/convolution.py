"""Convolutions as matrix products. A TPU computes these in the layouts of the operations around them."""

from functools import reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import wide

FEW = 16  # channels or fewer would leave most of the lanes empty: such maps are better planes [H, W]


def convolve(
    features: Float[Array, "b H W C"], kernel: Float[Array, "k k C D"], stride: int
) -> Float[Array, "b _ _ D"]:
    """A convolution with zero padding that keeps the size for stride 1, and without padding for another.

    H and W must be multiples of the stride.
    """
    size, _, inputs, outputs = kernel.shape
    if size == stride:
        return _convolve_cells(features, kernel)
    if size == 3 and stride == 1 and inputs <= FEW:
        padded = jnp.pad(features.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
        planes = jnp.stack([_neighbour(padded, y, x) for y in range(3) for x in range(3)])
        return jnp.einsum("tbchw,tcd->bhwd", planes, kernel.reshape(9, inputs, outputs))
    padding = "SAME" if stride == 1 else "VALID"
    return lax.conv_general_dilated(
        features, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_cells(features, kernel):
    """A convolution of cells of k x k pixels: a product for each row of the cells, whose pixels lie side by side."""
    size, _, inputs, outputs = kernel.shape
    batch, height, width = features.shape[:3]
    rows = features.reshape(batch, height // size, size, width // size, size * inputs)
    products = (
        jnp.einsum("bhwc,cd->bhwd", rows[:, :, row], own, preferred_element_type=wide(features))
        for row, own in enumerate(kernel.reshape(size, -1, outputs))
    )
    return reduce(jnp.add, products).astype(features.dtype)


def convolve_to_few(features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "b H W D"]:
    """3x3 convolution with zero padding to few channels: one product with all taps, whose results are then moved."""
    taps = jnp.einsum("bhwc,yxcd->yxbdhw", features, kernel, preferred_element_type=wide(features))
    taps = jnp.pad(taps, ((0, 0),) * 4 + ((1, 1), (1, 1)))
    planes = sum(_neighbour(taps[y, x], y, x) for y in range(3) for x in range(3))
    return planes.transpose(0, 2, 3, 1).astype(features.dtype)


def _neighbour(padded, y, x):
    """Planes [b, C, H, W] as the tap (y, x) reads them, cut from planes that are padded by one pixel."""
    height, width = padded.shape[2:]
    return padded[:, :, y : y + height - 2, x : x + width - 2]
