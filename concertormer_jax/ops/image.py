"""Resizing, padding and rearranging of images and feature maps."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

Image = Array | np.ndarray  # on a device or not


def downsample(images: Shaped[Image, "b H W C"], factor: int) -> Shaped[Image, "b H//{factor} W//{factor} C"]:
    """Bilinear reduction by an even `factor` with half-pixel centres and no antialiasing.

    The sample points lie in the middle between the two central pixels of each `factor` x `factor` cell in both
    directions, so the result is the mean of the central 2x2 pixels of the cell.

    Raises ValueError unless H and W are multiples of `factor`.
    """
    height, width = images.shape[1:3]
    if factor < 2 or factor % 2 or height % factor or width % factor:
        raise ValueError(f"factor={factor} must be even and divide the image size {height}x{width}")
    around = factor // 2 - 1
    centre = jnp.asarray(images)[:, around : height - around, around : width - around]
    return lax.reduce_window(centre, 0.0, lax.add, (1, 2, 2, 1), (1, factor, factor, 1), "VALID") / 4


def pixel_shuffle(features: Shaped[Image, "b H W _"], factor: int) -> Shaped[Image, "b {factor}*H {factor}*W _"]:
    """Move channels to pixels, in PyTorch's order: channel index = c * factor**2 + dy * factor + dx.

    [b, H, W, factor**2 C] to [b, factor H, factor W, C].
    """
    batch, height, width, channels = features.shape
    channels //= factor**2
    features = features.reshape(batch, height, width, channels, factor, factor)
    return features.transpose(0, 1, 4, 2, 5, 3).reshape(batch, factor * height, factor * width, channels)


def pixel_unshuffle(features: Shaped[Image, "b _ _ C"], factor: int) -> Shaped[Image, "b _ _ {factor}**2*C"]:
    """The inverse of `pixel_shuffle`: [b, factor H, factor W, C] to [b, H, W, factor**2 C]."""
    batch, height, width, channels = features.shape
    height, width = height // factor, width // factor
    features = features.reshape(batch, height, factor, width, factor, channels)
    return features.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height, width, factor**2 * channels)


def padded_size(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def pad_to_multiple(images: Shaped[Image, "b _ _ C"], multiple: int) -> Shaped[Image, "b _ _ C"]:
    """`pad_to_size` until H and W are multiples of `multiple`."""
    return pad_to_size(images, *(padded_size(size, multiple) for size in images.shape[1:3]))


def pad_to_size(images: Shaped[Image, "b _ _ C"], height: int, width: int) -> Shaped[Image, "b {height} {width} C"]:
    """Reflect-pad at the bottom and the right.

    As NumPy's mode "reflect": the border pixel is not doubled, a picture smaller than the padding is reflected
    repeatedly, and an axis of one pixel is repeated.
    """
    for axis, padded in ((1, height), (2, width)):
        size = images.shape[axis]
        if padded > size:
            index = np.pad(np.arange(size), (0, padded - size), mode="reflect")
            images = jnp.take(images, index, axis=axis)
    return images
