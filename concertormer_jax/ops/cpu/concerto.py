"""Concerto self-attention on a CPU.

A product for each block runs on a single core, and XLA shares such products out among the cores only where many of its
operations are ready at once. So large spatial groups attend with one half of the queries beside the other.

Small parameters are copied before the loops that use them: see `cpu.workarounds`.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, merge_blocks, split_blocks
from concertormer_jax.ops.cpu.cdc import over_grid
from concertormer_jax.ops.cpu.workarounds import materialize
from concertormer_jax.ops.reference import CONCERTO, AttentionWeights, wide
from concertormer_jax.ops.shared import attention
from concertormer_jax.ops.shared.attention import (
    Arithmetic,
    Channel,
    Spatial,
    attend,
    minus_maxima,
    plain_attention,
    sum_over,
)
from concertormer_jax.ops.shared.cdc import CDC, cdc_of, mask_maps, needs_mask
from concertormer_jax.ops.shared.groups import (
    INSIDE_BLOCKS,
    LAYOUTS,
    Parameters,
    for_every_channel,
    parameters_by_group,
    positions_first,
    projected,
    sca_gate,
    separate_heads,
)
from concertormer_jax.ops.shared.layers import project_channels_first
from concertormer_jax.ops.shared.taps import cdc_over_blocks

LARGE = 2**20  # with so many numbers in the queries of a group or more, two halves of the queries are faster

ARITHMETIC = Arithmetic(sum_over, partial(sum_over, axis=-1), minus_maxima)
SPATIAL = Spatial(ARITHMETIC)

transposed_attention = partial(attention.transposed_attention, SPATIAL)

Parts = list[Float[Array, "..."]]  # of a group's result, each of some of the queries


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
    if weights.temperature is not None:
        weights = weights._replace(temperature=materialize(weights.temperature))

    results = []
    for own in parameters_by_group(weights, groups, x.dtype):
        with jax.named_scope(own.group):
            cdc = cdc_of(
                own.group, groups, own.cdc, own.temperature, partial(cdc_over_blocks, grid, over_grid=over_grid)
            )

            def masked(queries, cdc=cdc, group=own.group):
                if not needs_mask(group, shifted):
                    return cdc
                return cdc.then(partial(mask_maps, grid, queries=queries), shifted)

            features = (x_inside, y_inside) if own.group in INSIDE_BLOCKS else (x_across, y_across)
            results.append(_ATTEND[own.group](*features, own, heads, masked))

    output = jnp.concatenate([_joined(*result) for result in zip(groups, results, strict=True)], axis=-1)
    if weights.sca_kernel is not None:
        with jax.named_scope("sca"):
            means = [_mean(*result) for result in zip(groups, results, strict=True)]
            output = output * sca_gate(weights, means, output.dtype)
    return merge_blocks(grid, output, shifted)


# Each takes features that give the queries and features that give keys and values, [b, n, p, C] for what attends inside
# blocks and [b, p, n, C] for the others, and the group's CDC, with the mask of the given queries.

Masked = Callable[[slice], CDC]


def _ripieno_spatial(x, y, own: Parameters, heads: int, masked: Masked) -> Parts:
    q, k, v = (separate_heads(part, heads) for part in projected(x, y, own))
    parts = _halves_of_queries(q)
    return [attend(SPATIAL, q[..., part, :], k, v, own.required_temperature, masked(part)) for part in parts]


def _between_channels(x, y, own: Parameters, heads: int, masked: Masked) -> Parts:
    q, k, v = projected(x, y, own)
    return [attend(Channel(ARITHMETIC, heads), q, k, v, own.required_temperature, masked(slice(None)))]


def _concertino_spatial(x, y, own: Parameters, _, masked: Masked) -> Parts:
    q, k, v = projected(x, y, own, partial(project_channels_first, materialize=materialize))
    temperature, cdc = for_every_channel(own.required_temperature, masked(slice(None)), q)
    return [attend(SPATIAL, q[..., part, :], k, v, temperature, cdc) for part in _halves_of_queries(q)]


def _window(x, y, own: Parameters, heads: int, masked: Masked) -> Parts:
    q, k, v = (separate_heads(part, heads) for part in projected(x, y, own))
    return [plain_attention(q, k, v, masked(slice(None)))]


def _transposed(x, y, own: Parameters, heads: int, masked: Masked) -> Parts:
    q, k, v = projected(x, y, own)
    pixels = (part.reshape(len(part), -1, part.shape[-1]) for part in (q, k, v))
    return [attend(Channel(ARITHMETIC, heads), *pixels, own.required_temperature, masked(slice(None))).reshape(q.shape)]


_ATTEND = {
    "ripieno_spatial": _ripieno_spatial,
    "ripieno_channel": _between_channels,
    "concertino_channel": _between_channels,
    "concertino_spatial": _concertino_spatial,
    "window": _window,
    "transposed": _transposed,
}


def _halves_of_queries(q):
    """Slices of the queries, the last axis but one: two where there are many numbers."""
    count = q.shape[-2]
    size = count // 2 if q.size >= LARGE else count
    return [slice(start, start + size) for start in range(0, count, size)]


def _joined(group: str, parts: Parts) -> Float[Array, "b p n mc"]:
    """The result of a group as blocks of a map."""
    return jnp.concatenate([positions_first(LAYOUTS[group], part) for part in parts], axis=1)


def _mean(group: str, parts: Parts) -> Float[Array, "b mc"]:
    """The mean of a group's result over the map, in float32 at least.

    A sum: XLA compiles the product of `mean_of_map` anew wherever there is one.
    """
    axes = LAYOUTS[group].axes
    kept = "bmc" if "m" in axes else "bc"
    sums = reduce(jnp.add, [jnp.einsum(f"{axes}->{kept}", part.astype(wide(part))) for part in parts])
    return sums.reshape(len(sums), -1) * (sums.size / sum(part.size for part in parts))
