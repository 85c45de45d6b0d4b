"""Concerto self-attention on a TPU: the products of each head for itself, of all queries at once.

To separate the heads costs nothing, as the projections write them apart.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, across, partition, permute, shift_of, unpartition
from concertormer_jax.ops.reference import CONCERTO, MASK, AttentionWeights
from concertormer_jax.ops.shared import attention
from concertormer_jax.ops.shared.attention import (
    Arithmetic,
    Spatial,
    attend,
    plain_attention,
    product,
    sum_over,
)
from concertormer_jax.ops.shared.cdc import CDC, cdc_of, mask_maps, needs_mask
from concertormer_jax.ops.shared.groups import (
    INSIDE_BLOCKS,
    LAYOUTS,
    Parameters,
    for_every_channel,
    mean_of_map,
    parameters_by_group,
    positions_first,
    projected,
    sca_gate,
    separate_heads,
)
from concertormer_jax.ops.shared.layers import project_channels_first

_MATRIX_CHANNELS = 8  # of the convolution over blocks: as many as a TPU's tile has rows


def concerto_attention(
    x: Float[Array, "b H W C"],
    y: Float[Array, "b H W D"],
    weights: AttentionWeights,
    shifted: Bool[Array, ""] | bool,
    *,
    heads: int,
    groups: Sequence[str] = CONCERTO,
    block: int = 8,
) -> Float[Array, "b H W h"]:
    """`ops.concerto.concerto_attention`."""
    grid = Grid(x.shape[1] // block, x.shape[2] // block, block)
    x_across = split_blocks(grid, x, shifted)  # bpnC
    y_across = x_across if y is x else split_blocks(grid, y, shifted)
    x_inside = x_across.swapaxes(1, 2)  # bnpC
    y_inside = x_inside if y is x else y_across.swapaxes(1, 2)

    results = []
    for own in parameters_by_group(weights, groups, x.dtype):
        with jax.named_scope(own.group):
            cdc = cdc_of(own.group, groups, own.cdc, own.temperature, partial(cdc_over_blocks, grid))
            if needs_mask(own.group, shifted):
                mask = partial(mask_maps, grid) if own.cdc is None else partial(mask_rows, grid, heads)
                cdc = cdc.then(mask, shifted)
            features = (x_inside, y_inside) if own.group in INSIDE_BLOCKS else (x_across, y_across)
            results.append(_ATTEND[own.group](*features, own, heads, cdc))

    by_group = [(LAYOUTS[group], result) for group, result in zip(groups, results, strict=True)]
    output = jnp.concatenate([positions_first(*result) for result in by_group], axis=-1)
    if weights.sca_kernel is not None:
        with jax.named_scope("sca"):
            means = [mean_of_map(*result) for result in by_group]
            output = output * sca_gate(weights, means, output.dtype)
    return merge_blocks(grid, output, shifted)


def sum_weights(maps: Float[Array, "*batch q k"]) -> Float[Array, "*batch q"]:
    """Sums over the last axis by a product with ones, as a TPU is slow at adding across its lanes.

    With one column of ones its compiler would turn the product into a sum again.
    """
    return product("...ab,bk->...ak", maps, jnp.ones((maps.shape[-1], 8), maps.dtype))[..., 0]


def numerators(
    cdc: Callable[..., Array],
    dtype: Any,
    after: Float[Array, "..."],
    logits: Float[Array, "*batch q k"],
    parameters: tuple[Array, ...],
    bounded: Bool[Array, ""],
) -> Float[Array, "..."]:
    """`Arithmetic.numerators`: one loop of CDC and exponential; where a maximum is needed, the result of another.

    The barrier keeps that result in the shape of `after` and as `dtype`. Without it, XLA would compute the exponentials
    twice, for their sum and for their product with the values, from float32 maps whose short axes are padded.
    """
    without_maximum = jax.lax.optimization_barrier(jnp.exp(after).astype(dtype))

    def with_maximum(_, logits, parameters):
        rows = cdc(logits, *parameters).reshape(logits.shape)
        return jnp.exp(rows - rows.max(axis=-1, keepdims=True)).reshape(after.shape).astype(dtype)

    return jax.lax.cond(bounded, lambda result, *_: result, with_maximum, without_maximum, logits, parameters)


SPATIAL = Spatial(Arithmetic(sum_over, sum_weights, numerators))

transposed_attention = partial(attention.transposed_attention, SPATIAL)


# Each takes x, which gives the queries, and y, which gives keys and values: [b, n, p, C] for groups that attend inside
# blocks, [b, p, n, C] for the others. The axes of the results are in `shared.groups.LAYOUTS`.


def _ripieno_spatial(x, y, own: Parameters, heads: int, cdc: CDC):
    q, k, v = (separate_heads(part, heads) for part in projected(x, y, own))
    return attend(SPATIAL, q, k, v, own.required_temperature, cdc)


def _between_channels(x, y, own: Parameters, heads: int, cdc: CDC):
    q, k, v = projected(x, y, own)
    mixed = attend(SPATIAL, *(_heads_first(part, heads) for part in (q, k, v)), own.required_temperature, cdc)
    return jnp.moveaxis(mixed, -1, -3).reshape(v.shape)


def _heads_first(features, heads):
    """[..., K, m c] to [..., m, c, K]."""
    return jnp.moveaxis(features.reshape(*features.shape[:-1], heads, -1), -3, -1)


def _concertino_spatial(x, y, own: Parameters, _, cdc: CDC):
    q, k, v = projected(x, y, own, project_channels_first)
    return attend(SPATIAL, q, k, v, *for_every_channel(own.required_temperature, cdc, q))


def _window(x, y, own: Parameters, heads: int, cdc: CDC):
    return plain_attention(*(separate_heads(part, heads) for part in projected(x, y, own)), cdc)


def _transposed(x, y, own: Parameters, heads: int, cdc: CDC):
    q, k, v = projected(x, y, own)
    pixels = (_heads_first(part.reshape(len(part), -1, part.shape[-1]), heads) for part in (q, k, v))
    mixed = attend(SPATIAL, *pixels, own.required_temperature, cdc)
    return jnp.moveaxis(mixed, -1, -3).reshape(q.shape)


_ATTEND = {
    "ripieno_spatial": _ripieno_spatial,
    "ripieno_channel": _between_channels,
    "concertino_channel": _between_channels,
    "concertino_spatial": _concertino_spatial,
    "window": _window,
    "transposed": _transposed,
}


# Splitting and merging of blocks. Gathers, which `ops.blocks` takes, are slow on a TPU. Instead the map is extended by
# its own border, and the blocks are cut out of it in one pass.


def split_blocks(
    grid: Grid, features: Float[Array, "b H W C"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b p n C"]:
    """`ops.blocks.split_blocks`."""
    if shifted is False:
        return partition(features, grid.size)
    return permute(_cut, _join, grid, features, jnp.asarray(shifted))


def merge_blocks(
    grid: Grid, blocks: Float[Array, "b p n C"], shifted: Bool[Array, ""] | bool
) -> Float[Array, "b H W C"]:
    """`ops.blocks.merge_blocks`."""
    if shifted is False:
        return unpartition(blocks, grid)
    return permute(_join, _cut, grid, blocks, jnp.asarray(shifted))


def _cut(grid, features, shifted):
    border = grid.size // 2
    shape = features.shape
    for axis in (1, 2):
        features = jnp.concatenate([features, jax.lax.slice_in_dim(features, 0, border, axis=axis)], axis=axis)
    start = shift_of(grid, shifted)
    blocks = partition(jax.lax.dynamic_slice(features, [0, start, start, 0], shape), grid.size)
    # Without the barrier XLA copies the blocks for some projections, which all read them in this layout.
    return jax.lax.optimization_barrier(blocks)


def _join(grid, blocks, shifted):
    border = grid.size // 2
    features = unpartition(blocks, grid)
    shape = features.shape
    for axis, size in ((1, shape[1]), (2, shape[2])):
        end = jax.lax.slice_in_dim(features, size - border, size, axis=axis)
        features = jnp.concatenate([end, features], axis=axis)
    start = border - shift_of(grid, shifted)
    return jax.lax.dynamic_slice(features, [0, start, start, 0], shape)


# CDC over blocks: a TPU multiplies matrices much faster than it adds shifted maps of a few heads.


def cdc_over_blocks(
    grid: Grid, logits: Float[Array, "b n m E F"], kernel: Float[Array, "3 3 m m"]
) -> Float[Array, "b y x fm EF"]:
    """`shared.taps.cdc_over_blocks` as a convolution whose channels are the heads of f neighbouring blocks of a row.

    Returns each map as a row [EF], in the layout of the convolution's result.
    """
    batch, _, heads, *entries = logits.shape
    fold = math.gcd(grid.columns, max(1, _MATRIX_CHANNELS // heads))
    channels = fold * heads
    # For block `to` of a chunk of `fold` blocks, tap `right` reads block `source` of the same or a neighbouring chunk.
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
