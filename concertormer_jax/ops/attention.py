"""Concerto self-attention: four groups of heads over 8x8 blocks (paper, section 3).

The groups differ only in which axis of the blocked features is attended, which is contracted, and which are batched
over. With n blocks of p = 64 positions, m heads and c channels in a head:

    group                      attended    contracted   one map for each     cross-dimensional communication between
    Rs  Ripieno, spatial       positions   channels     block, head          blocks (3x3), heads
    Rc  Ripieno, channel       channels    positions    block, head          blocks (3x3), heads
    Cc  Concertino, channel    channels    blocks       head, position       positions, heads
    Cs  Concertino, spatial    positions   blocks       head, channel        channels, heads

Queries and keys are normalised along the contracted axis. That is done after their product: the logits are scaled by
the inverse norms, which touches the small attention maps in place of the large feature maps. Products are accumulated,
and logits and softmax computed, in float32 whatever the type of the features.

Each group has its own projections, which write the layout that its attention reads; the channel groups multiply all
heads at once and keep the diagonal blocks of the product (c is small: it costs less than to separate the heads of the
feature maps).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.ops import windows
from concertormer_jax.ops.convolution import communicate_over_blocks
from concertormer_jax.ops.projection import project

BLOCK = 8  # side of a block in pixels
SHIFT_MASK = -jnp.inf
SMALLEST_SQUARED_NORM = 1e-24
LARGEST_LOGIT = 80.0


def _wide(features: jax.Array):
    """float32, or the type of `features` if that is wider."""
    return jnp.promote_types(features.dtype, jnp.float32)


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum, accumulated in float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=_wide(a))


def _inverse_norm(features: jax.Array, axis: int) -> jax.Array:
    squared = jnp.sum(jnp.square(features.astype(_wide(features))), axis=axis)
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))  # 1 / max(norm, 1e-12)


def _exponentials(logits, inverse_norm_q, inverse_norm_k, temperature, communicate):
    """The softmax before its division: the logits are near 1, so that it needs no maximum."""
    logits *= (inverse_norm_q * temperature)[..., None] * inverse_norm_k[..., None, :]
    return jnp.exp(jnp.clip(communicate(logits), -LARGEST_LOGIT, LARGEST_LOGIT))


def spatial_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array, communicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Softmax attention with normalised queries and keys, its logits passed through `communicate`.

    q, k, v: [..., A, K], attended and contracted axes last; temperature: broadcasts against [..., A].
    communicate: a map of the logits [..., A, A]. Returns [..., A, K].
    """
    logits = _product("...ak,...bk->...ab", q, k)
    weights = _exponentials(logits, _inverse_norm(q, -1), _inverse_norm(k, -1), temperature, communicate).astype(v.dtype)
    total = jnp.sum(weights, axis=-1, dtype=_wide(v))
    return (_product("...ab,...bk->...ak", weights, v) / total[..., None]).astype(v.dtype)


def channel_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array, communicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """As `spatial_attention` between the channels of each head.

    q, k, v: [..., K, m c], the contracted axis and then m heads of c channels; temperature: [m, 1].
    communicate: a map of the logits [..., m, c, c]. Returns [..., K, m c].
    """
    heads = temperature.shape[0]

    def split(norms):
        return norms.reshape(*norms.shape[:-1], heads, -1)

    logits = _diagonal_blocks(_product("...ka,...kb->...ab", q, k), heads)
    norms = [split(_inverse_norm(part, -2)) for part in (q, k)]
    weights = _exponentials(logits, *norms, temperature, communicate).astype(v.dtype)
    total = jnp.sum(weights, axis=-1, dtype=_wide(v))
    total = total.reshape(*total.shape[:-2], 1, -1)
    return (_product("...ab,...kb->...ka", _block_diagonal(weights), v) / total).astype(v.dtype)


def _diagonal_blocks(matrices: jax.Array, count: int) -> jax.Array:
    """[..., m c, m c] to [..., m, c, c] for m = count."""
    size = matrices.shape[-1] // count
    ranges = [slice(i * size, (i + 1) * size) for i in range(count)]
    return jnp.stack([matrices[..., part, part] for part in ranges], axis=-3)


def _block_diagonal(blocks: jax.Array) -> jax.Array:
    """The inverse of `_diagonal_blocks`, with zeros elsewhere."""
    count, size = blocks.shape[-3:-1]
    none = [(0, 0)] * (blocks.ndim - 2)
    rows = [jnp.pad(blocks[..., i, :, :], [*none, (i * size, (count - 1 - i) * size)]) for i in range(count)]
    return jnp.concatenate(rows, axis=-2)


def communicate_over_maps(logits: jax.Array, matrix: jax.Array) -> jax.Array:
    """Cross-dimensional communication of a Concertino: every map becomes a weighted sum of all maps.

    logits: [B, ..., A, A], the axes between numbering D maps; matrix: [D, D] (map in, map out). Returns logits' shape.
    """
    maps = logits.reshape(logits.shape[0], matrix.shape[0], -1)
    return jnp.einsum("st,bse->bte", matrix, maps).reshape(logits.shape)


class Weights(NamedTuple):
    """Parameters of one Concerto self-attention of C channels, m heads and h hidden channels, c = h / (4 m)."""

    to_q: jax.Array  # [C, h], as all projections with the output channels in the order (group, head, channel)
    to_kv: jax.Array  # [C, 2 h], keys first
    temperature: jax.Array  # [4, m], groups in the order Rs, Rc, Cc, Cs
    b_talking: jax.Array  # [3, 3, m, m], communication of Rs over the grid of blocks
    l_talking: jax.Array  # [3, 3, m, m], of Rc
    g_talking: jax.Array  # [m, 64, 64, m], of Cc over positions
    r_talking: jax.Array  # [m, c, c, m], of Cs over channels
    sca_kernel: jax.Array  # [h, h], simplified channel attention
    sca_bias: jax.Array  # [h]


def concerto_attention(x: jax.Array, y: jax.Array, weights: Weights, shifted: jax.Array | bool) -> jax.Array:
    """Concerto self-attention with cross-dimensional communication, and the simplified channel attention of its result.

    x: [B, H, W, C] normalised features that give the queries; y: [B, H, W, C] those that give keys and values; H and W
    multiples of 8. `shifted` (a boolean, may be traced) moves the blocks by half their size.
    Returns [B, H, W, h] with the channels in the order (group, head, channel), the groups being Rs, Rc, Cc, Cs.
    """
    (batch, height, width, _), heads = x.shape, weights.temperature.shape[1]
    rows, columns = height // BLOCK, width // BLOCK
    hidden = weights.to_q.shape[1]
    channels = hidden // (4 * heads)

    def blocks(features):
        return windows.partition(windows.roll_where(shifted, features, -BLOCK // 2), BLOCK)

    # Both [B, positions, blocks, C]; the Ripieno take [B, blocks, positions, C].
    x_positions = blocks(x)
    y_positions = x_positions if y is x else blocks(y)
    x_blocks = x_positions.swapaxes(1, 2)
    y_blocks = x_blocks if y is x else y_positions.swapaxes(1, 2)

    to_q = jnp.split(weights.to_q.astype(x.dtype), 4, axis=1)
    to_kv = jnp.split(weights.to_kv.astype(x.dtype), 8, axis=1)

    def projected(group, x, y):
        return project(x, to_q[group]), project(y, to_kv[group]), project(y, to_kv[4 + group])

    def temperature(group):
        return weights.temperature[group][:, None]

    def over_blocks(kernel):
        def communicate(logits):  # [B, blocks, m, A, A]
            grid = logits.reshape(batch, rows, columns, *logits.shape[2:])
            return communicate_over_blocks(grid, kernel).reshape(logits.shape)

        return communicate

    def over_blocks_masked(logits):
        crosses = windows.crosses_border(rows, columns, BLOCK).reshape(rows * columns, 1, *logits.shape[-2:])
        logits = over_blocks(weights.b_talking)(logits)
        return jnp.where(crosses & shifted, logits + SHIFT_MASK, logits)

    def over_positions(logits):  # [B, positions, m, c, c]
        matrix = weights.g_talking.transpose(1, 0, 2, 3).reshape(2 * (BLOCK**2 * heads,))
        return communicate_over_maps(logits, matrix)

    def over_channels(logits):  # [B, m c, positions, positions]
        matrix = weights.r_talking.transpose(0, 1, 3, 2).reshape(2 * (heads * channels,))
        return communicate_over_maps(logits, matrix)

    with jax.named_scope("ripieno_spatial"):
        qkv = [
            part.reshape(*part.shape[:3], heads, channels).swapaxes(2, 3) for part in projected(0, x_blocks, y_blocks)
        ]
        ripieno_spatial = spatial_attention(*qkv, temperature(0), over_blocks_masked)
        ripieno_spatial = ripieno_spatial.transpose(0, 3, 1, 2, 4).reshape(batch, BLOCK**2, rows * columns, -1)
    with jax.named_scope("ripieno_channel"):
        qkv = projected(1, x_blocks, y_blocks)
        ripieno_channel = channel_attention(*qkv, temperature(1), over_blocks(weights.l_talking)).swapaxes(1, 2)
    with jax.named_scope("concertino_channel"):
        qkv = projected(2, x_positions, y_positions)
        concertino_channel = channel_attention(*qkv, temperature(2), over_positions)
    with jax.named_scope("concertino_spatial"):
        qkv = [part.transpose(0, 3, 1, 2) for part in projected(3, x_positions, y_positions)]
        concertino_spatial = spatial_attention(*qkv, jnp.repeat(temperature(3), channels, axis=0), over_channels)
        concertino_spatial = concertino_spatial.transpose(0, 2, 3, 1)

    with jax.named_scope("sca"):
        output = jnp.concatenate([ripieno_spatial, ripieno_channel, concertino_channel, concertino_spatial], axis=-1)
        gate = _mean(output) @ weights.sca_kernel + weights.sca_bias
        output = windows.merge(output * gate.astype(output.dtype)[:, None, None], BLOCK, height, width)
        return windows.roll_where(shifted, output, BLOCK // 2)


def _mean(features: jax.Array) -> jax.Array:
    """The mean of [B, P, N, C] over P and N; first over P by a matrix product, several times faster than such a sum."""
    share = jnp.full(features.shape[1], 1 / features.shape[1], features.dtype)
    means = jnp.einsum("p,bpnc->bnc", share, features, preferred_element_type=_wide(features), precision="highest")
    return means.mean(axis=1)
