"""Concerto self-attention on a GPU: all heads and all queries of a group at once.

The channel groups multiply all heads at once, and keep the diagonal blocks of the product.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, merge_blocks, split_blocks
from concertormer_jax.ops.reference import CONCERTO, AttentionWeights
from concertormer_jax.ops.shared import attention
from concertormer_jax.ops.shared.attention import (
    Arithmetic,
    Channel,
    Spatial,
    attend,
    minus_chosen_maxima,
    plain_attention,
    sum_over,
)
from concertormer_jax.ops.shared.cdc import CDC, cdc_of, mask_maps, unmasked
from concertormer_jax.ops.shared.groups import (
    INSIDE_BLOCKS,
    LAYOUTS,
    Parameters,
    for_every_channel,
    mean_of_map,
    parameters_by_group,
    positions_first,
    sca_gate,
    separate_heads,
)
from concertormer_jax.ops.shared.projection import project, project_channels_first
from concertormer_jax.ops.shared.taps import cdc_over_blocks

ARITHMETIC = Arithmetic(sum_over, partial(sum_over, axis=-1), minus_chosen_maxima)
SPATIAL = Spatial(ARITHMETIC)

transposed_attention = partial(attention.transposed_attention, SPATIAL)


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
            if not unmasked(own.group, shifted):
                cdc = cdc.then(partial(mask_maps, grid), shifted)
            features = (x_inside, y_inside) if own.group in INSIDE_BLOCKS else (x_across, y_across)
            results.append(_ATTEND[own.group](*features, own, heads, cdc))

    by_group = [(LAYOUTS[group], result) for group, result in zip(groups, results, strict=True)]
    output = jnp.concatenate([positions_first(*result) for result in by_group], axis=-1)
    if weights.sca_kernel is not None:
        with jax.named_scope("sca"):
            means = [mean_of_map(*result) for result in by_group]
            output = output * sca_gate(weights, means, output.dtype)
    return merge_blocks(grid, output, shifted)


# Each takes features that give the queries and features that give keys and values, [b, n, p, C] for what attends inside
# blocks and [b, p, n, C] for the others. The axes of the results are in `shared.groups.LAYOUTS`.


def _ripieno_spatial(x, y, own: Parameters, heads: int, cdc: CDC):
    q, k, v = (separate_heads(part, heads) for part in _projected(x, y, own))
    return attend(SPATIAL, q, k, v, own.required_temperature, cdc)


def _between_channels(x, y, own: Parameters, heads: int, cdc: CDC):
    return attend(Channel(ARITHMETIC, heads), *_projected(x, y, own), own.required_temperature, cdc)


def _concertino_spatial(x, y, own: Parameters, _, cdc: CDC):
    q, k, v = _projected(x, y, own, project_channels_first)
    return attend(SPATIAL, q, k, v, *for_every_channel(own.required_temperature, cdc, q))


def _window(x, y, own: Parameters, heads: int, cdc: CDC):
    return plain_attention(*(separate_heads(part, heads) for part in _projected(x, y, own)), cdc)


def _transposed(x, y, own: Parameters, heads: int, cdc: CDC):
    q, k, v = _projected(x, y, own)
    pixels = (part.reshape(len(part), -1, part.shape[-1]) for part in (q, k, v))
    return attend(Channel(ARITHMETIC, heads), *pixels, own.required_temperature, cdc).reshape(q.shape)


_ATTEND = {
    "ripieno_spatial": _ripieno_spatial,
    "ripieno_channel": _between_channels,
    "concertino_channel": _between_channels,
    "concertino_spatial": _concertino_spatial,
    "window": _window,
    "transposed": _transposed,
}


@jax.named_scope("projections")
def _projected(x, y, own, project=project):
    """q, k and v."""
    return project(x, own.to_q), project(y, own.to_k), project(y, own.to_v)
