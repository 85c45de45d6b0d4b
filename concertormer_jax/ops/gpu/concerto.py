"""Concerto self-attention on a GPU: all heads and all queries of a group at once.

The channel groups multiply all heads at once, and keep the diagonal blocks of the product.
"""

import dataclasses
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
    Kind,
    Spatial,
    attend,
    minus_maxima,
    plain_attention,
    sum_over,
)
from concertormer_jax.ops.shared.cdc import CDC, cdc_of, mask_maps, minus_mean, needs_mask
from concertormer_jax.ops.shared.groups import (
    INSIDE_BLOCKS,
    LAYOUTS,
    Layout,
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
from concertormer_jax.ops.shared.taps import cdc_over_blocks

ARITHMETIC = Arithmetic(sum_over, partial(sum_over, axis=-1), minus_maxima)
SPATIAL = Spatial(ARITHMETIC)

transposed_attention = partial(attention.transposed_attention, SPATIAL)


@dataclasses.dataclass(frozen=True)
class WholeMap:
    """The steps of the attention that see all blocks; `ops.sharded.concerto` has them for a part of a map's rows."""

    grid: Grid

    def split(self, features: Float[Array, "b H W C"], shifted: Bool[Array, ""] | bool) -> Float[Array, "b p n C"]:
        """`ops.blocks.split_blocks`."""
        return split_blocks(self.grid, features, shifted)

    def merge(self, blocks: Float[Array, "b p n C"], shifted: Bool[Array, ""] | bool) -> Float[Array, "b H W C"]:
        """`ops.blocks.merge_blocks`."""
        return merge_blocks(self.grid, blocks, shifted)

    def cdc_over_blocks(
        self, logits: Float[Array, "*shape"], kernel: Float[Array, "3 3 m m"]
    ) -> Float[Array, "*shape"]:
        """`shared.taps.cdc_over_blocks`."""
        return cdc_over_blocks(self.grid, logits, kernel)

    def minus_mean(self, logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`shared.cdc.minus_mean`."""
        return minus_mean(logits)

    def mask(self, logits: Float[Array, "*shape"], shifted: Bool[Array, ""] | bool) -> Float[Array, "*shape"]:
        """`shared.cdc.mask_maps`."""
        return mask_maps(self.grid, logits, shifted)

    def mean(self, layout: Layout, result: Float[Array, "..."]) -> Float[Array, "b mc"]:
        """`shared.groups.mean_of_map`."""
        return mean_of_map(layout, result)

    def summed_over_blocks(self, kind: Kind) -> Kind:
        """The attention `kind` where its products are sums over the blocks."""
        return kind


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
    return attention_on(WholeMap(grid), x, y, weights, shifted, heads, groups)


def attention_on(
    place: WholeMap,
    x: Float[Array, "b H W C"],
    y: Float[Array, "b H W D"],
    weights: AttentionWeights,
    shifted: Bool[Array, ""] | bool,
    heads: int,
    groups: Sequence[str],
) -> Float[Array, "b H W h"]:
    """`concerto_attention` of maps that lie as `place` says."""
    x_across = place.split(x, shifted)  # bpnC
    y_across = x_across if y is x else place.split(y, shifted)
    x_inside = x_across.swapaxes(1, 2)  # bnpC
    y_inside = x_inside if y is x else y_across.swapaxes(1, 2)

    results = []
    for own in parameters_by_group(weights, groups, x.dtype):
        with jax.named_scope(own.group):
            cdc = cdc_of(own.group, groups, own.cdc, own.temperature, place.cdc_over_blocks, place.minus_mean)
            if needs_mask(own.group, shifted):
                cdc = cdc.then(place.mask, shifted)
            features = (x_inside, y_inside) if own.group in INSIDE_BLOCKS else (x_across, y_across)
            results.append(_ATTEND[own.group](*features, own, heads, cdc, place))

    by_group = [(LAYOUTS[group], result) for group, result in zip(groups, results, strict=True)]
    output = jnp.concatenate([positions_first(*result) for result in by_group], axis=-1)
    if weights.sca_kernel is not None:
        with jax.named_scope("sca"):
            means = [place.mean(*result) for result in by_group]
            output = output * sca_gate(weights, means, output.dtype)
    return place.merge(output, shifted)


# Each takes features that give the queries and features that give keys and values, [b, n, p, C] for what attends inside
# blocks and [b, p, n, C] for the others. The axes of the results are in `shared.groups.LAYOUTS`.


def _ripieno_spatial(x, y, own: Parameters, heads: int, cdc: CDC, _):
    q, k, v = (separate_heads(part, heads) for part in projected(x, y, own))
    return attend(SPATIAL, q, k, v, own.required_temperature, cdc)


def _ripieno_channel(x, y, own: Parameters, heads: int, cdc: CDC, _):
    return attend(Channel(ARITHMETIC, heads), *projected(x, y, own), own.required_temperature, cdc)


def _concertino_channel(x, y, own: Parameters, heads: int, cdc: CDC, place: WholeMap):
    kind = place.summed_over_blocks(Channel(ARITHMETIC, heads))
    return attend(kind, *projected(x, y, own), own.required_temperature, cdc)


def _concertino_spatial(x, y, own: Parameters, _, cdc: CDC, place: WholeMap):
    q, k, v = projected(x, y, own, project_channels_first)
    kind = place.summed_over_blocks(SPATIAL)
    return attend(kind, q, k, v, *for_every_channel(own.required_temperature, cdc, q))


def _window(x, y, own: Parameters, heads: int, cdc: CDC, _):
    return plain_attention(*(separate_heads(part, heads) for part in projected(x, y, own)), cdc)


def _transposed(x, y, own: Parameters, heads: int, cdc: CDC, place: WholeMap):
    q, k, v = projected(x, y, own)
    pixels = (part.reshape(len(part), -1, part.shape[-1]) for part in (q, k, v))
    kind = place.summed_over_blocks(Channel(ARITHMETIC, heads))
    return attend(kind, *pixels, own.required_temperature, cdc).reshape(q.shape)


_ATTEND = {
    "ripieno_spatial": _ripieno_spatial,
    "ripieno_channel": _ripieno_channel,
    "concertino_channel": _concertino_channel,
    "concertino_spatial": _concertino_spatial,
    "window": _window,
    "transposed": _transposed,
}
