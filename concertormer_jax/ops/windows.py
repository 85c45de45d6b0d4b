"""Square blocks of a feature map: cutting, joining, and the half-block shift."""

import jax
import jax.numpy as jnp


def partition(features: jax.Array, size: int) -> jax.Array:
    """Cut [B, H, W, C] into blocks [B, H / size, W / size, size * size, C], row-major outside and inside.

    Raises ValueError when `size` does not divide H and W.
    """
    batch, height, width, channels = features.shape
    if height % size or width % size:
        raise ValueError(f"a {height}x{width} feature map cannot be cut into blocks of size={size}")
    blocks = features.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, size * size, channels)


def merge(blocks: jax.Array, size: int) -> jax.Array:
    """The inverse of `partition`: [B, rows, columns, size * size, C] to [B, rows * size, columns * size, C]."""
    batch, rows, columns, _, channels = blocks.shape
    features = blocks.reshape(batch, rows, columns, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return features.reshape(batch, rows * size, columns * size, channels)


def roll_where(shifted: jax.Array | bool, features: jax.Array, offset: int) -> jax.Array:
    """Roll [B, H, W, C] circularly by `offset` pixels down and right where the scalar `shifted` is true.

    `shifted` may be traced: the blocks of a stage are scanned, and every other one is shifted.
    """
    return jnp.where(shifted, jnp.roll(features, (offset, offset), axis=(1, 2)), features)


def crosses_border(rows: int, columns: int, size: int) -> jax.Array:
    """Which pairs of positions in a shifted block come from opposite sides of the image's border.

    After a roll by half a block only the last row and the last column of blocks hold such pairs.
    Returns booleans [rows, columns, size * size, size * size].
    """
    second_half = jnp.arange(size) >= size // 2
    wrapped_down = (jnp.arange(rows) == rows - 1)[:, None] & second_half
    wrapped_right = (jnp.arange(columns) == columns - 1)[:, None] & second_half
    # region: [rows, columns, size * size], one label for each part of the image that meets in a block
    region = 2 * wrapped_down[:, None, :, None] + wrapped_right[None, :, None, :]
    region = region.reshape(rows, columns, size * size)
    return region[..., :, None] != region[..., None, :]
