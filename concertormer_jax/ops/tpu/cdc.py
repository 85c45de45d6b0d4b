"""CDC over blocks on a TPU, which multiplies matrices much faster than it adds shifted maps of a few heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, across
from concertormer_jax.ops.reference import MASK

_MATRIX_CHANNELS = 8  # as many as a TPU's tile has rows


def cdc_over_blocks(
    grid: Grid, logits: Float[Array, "b n m E F"], kernel: Float[Array, "3 3 m m"]
) -> Float[Array, "b y x fm EF"]:
    """`shared.taps.cdc_over_blocks` as a convolution whose channels are the heads of f neighbouring blocks of a row.

    Returns the maps as rows, which a TPU keeps in the order that the convolution leaves them in.
    """
    batch, _, heads, *entries = logits.shape
    fold = math.gcd(grid.columns, max(1, _MATRIX_CHANNELS // heads))
    channels = fold * heads
    # The tap `right` of block `to` in a chunk of `fold` blocks reads block `source` of its own or a neighbouring chunk.
    right, to = np.meshgrid(np.arange(3), np.arange(fold), indexing="ij")
    chunk, source = np.divmod(to + right - 1, fold)
    place = np.zeros((3, fold, 3, fold), np.float32)
    place[right, to, chunk + 1, source] = 1
    folded = jnp.einsum("rtcs,drio->dcsito", place, kernel).reshape(3, 3, channels, channels)
    return jax.lax.conv_general_dilated(
        logits.reshape(batch, grid.rows, grid.columns // fold, channels, math.prod(entries)),
        folded[None],
        window_strides=(1, 1, 1),
        padding=((0, 0), (1, 1), (1, 1)),
        dimension_numbers=("DHWCN", "DHWIO", "DHWCN"),  # the entries of the maps are a batch to the convolution
    )


def mask_rows(
    grid: Grid, heads: int, logits: Float[Array, "b y x fm pq"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b y x fm pq"]:
    """`shared.cdc.mask_maps` of maps as `cdc_over_blocks` returns them."""
    blocks = jnp.arange(grid.rows * grid.columns * heads).reshape(logits.shape[1:-1]) // heads
    row, column = jnp.divmod(blocks[..., None], grid.columns)
    across_bottom, across_right = (pairs.reshape(-1) for pairs in across(grid.size))
    crosses = ((row == grid.rows - 1) & across_bottom) | ((column == grid.columns - 1) & across_right)
    return jnp.where(crosses & shifted, logits + MASK, logits)
