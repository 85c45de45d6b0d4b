"""Square blocks of a feature map: cutting, joining, and the half-block shift.

Blocks lie as [B, positions, blocks, C], the position inside the block first: what attends across blocks contracts them
as they lie, and only the attention inside blocks exchanges the two axes.
"""

from functools import partial

import jax
import jax.numpy as jnp


def partition(features: jax.Array, size: int) -> jax.Array:
    """Cut [B, H, W, C] into [B, size * size, (H / size) * (W / size), C], row-major outside and inside.

    Raises ValueError when `size` does not divide H and W.
    """
    batch, height, width, channels = features.shape
    if height % size or width % size:
        raise ValueError(f"a {height}x{width} feature map cannot be cut into blocks of size={size}")
    blocks = features.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(batch, size * size, -1, channels)


def merge(blocks: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `partition`: [B, size * size, blocks, C] to [B, height, width, C]."""
    batch, _, _, channels = blocks.shape
    features = blocks.reshape(batch, size, size, height // size, width // size, channels).transpose(0, 3, 1, 4, 2, 5)
    return features.reshape(batch, height, width, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def roll_where(shifted: jax.Array | bool, features: jax.Array, offset: int) -> jax.Array:
    """Roll [B, H, W, C] circularly by `offset` pixels down and right where the scalar `shifted` is true.

    `shifted` may be traced: the blocks of a stage are scanned, and every other one is shifted.
    """
    return jax.lax.platform_dependent(
        jnp.asarray(shifted), features, tpu=partial(roll_by_cutting, offset), default=partial(roll_by_index, offset)
    )


def roll_by_index(offset: int, shifted: jax.Array, features: jax.Array) -> jax.Array:
    """`roll_where` as a gather of pixels, which a CPU and a GPU do in one pass with the copies before and after it."""
    for axis in (1, 2):
        size = features.shape[axis]
        sources = (jnp.arange(size) - jnp.where(shifted, offset, 0)) % size
        features = features.at[(slice(None),) * axis + (sources,)].get(mode="promise_in_bounds")
    return features


def roll_by_cutting(offset: int, shifted: jax.Array, features: jax.Array) -> jax.Array:
    """`roll_where` as a cut out of the map extended by its own border, one pass on a TPU; gathers are slow there."""
    border = abs(offset)
    start = jnp.where(shifted, border, 0) if offset < 0 else jnp.where(shifted, 0, border)
    shape = features.shape
    for axis in (1, 2):
        size = shape[axis]
        if offset < 0:
            parts = [features, jax.lax.slice_in_dim(features, 0, border, axis=axis)]
        else:
            parts = [jax.lax.slice_in_dim(features, size - border, size, axis=axis), features]
        features = jnp.concatenate(parts, axis=axis)
    return jax.lax.dynamic_slice(features, [0, start, start, 0], shape)


def _roll_forward(shifted, features, offset):
    return roll_where(shifted, features, offset), shifted


def _roll_backward(offset, shifted, gradient):
    return None, roll_where(shifted, gradient, -offset)


roll_where.defvjp(_roll_forward, _roll_backward)


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
