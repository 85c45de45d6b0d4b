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
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.ops import windows
from concertormer_jax.ops.convolution import communicate_over_blocks

BLOCK = 8  # side of a block in pixels
SHIFT_MASK = -100.0
SMALLEST_SQUARED_NORM = 1e-24


def _wide(features: jax.Array):
    """float32, or the type of `features` if that is wider."""
    return jnp.promote_types(features.dtype, jnp.float32)


def attend(qkv: jax.Array, temperature: jax.Array, communicate: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Softmax attention with normalised queries and keys, its logits passed through `communicate`.

    qkv: [3, ..., A, K], attended and contracted axes last; temperature: broadcasts against [..., A, 1].
    communicate: a map of the logits [..., A, A]. Returns [..., A, K].
    """
    q, k, v = qkv
    wide = _wide(qkv)
    squared = jnp.sum(jnp.square(qkv[:2].astype(wide)), axis=-1)
    inverse_norm = jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))  # 1 / max(norm, 1e-12)
    logits = jnp.einsum("...ak,...bk->...ab", q, k, preferred_element_type=wide)
    logits *= (inverse_norm[0][..., None] * temperature) * inverse_norm[1][..., None, :]
    weights = jax.nn.softmax(communicate(logits), axis=-1)
    return jnp.einsum("...ab,...bk->...ak", weights.astype(v.dtype), v)


def communicate_over_maps(logits: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-dimensional communication of a Concertino: every map becomes a weighted sum of all maps.

    logits: [B, m, D, A, A], D positions or channels; kernel: [m, D, D, m] (head in, in, out, head out).
    """
    batch, heads, size = logits.shape[:3]
    matrix = kernel.reshape(heads * size, size, heads).swapaxes(1, 2).reshape(heads * size, heads * size)
    maps = logits.reshape(batch, heads * size, -1)
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
    heads = weights.temperature.shape[1]

    def blocks(features):
        return windows.partition(windows.roll_where(shifted, features, -BLOCK // 2), BLOCK)

    x_blocks = blocks(x)
    y_blocks = x_blocks if y is x else blocks(y)
    q = x_blocks @ weights.to_q.astype(x.dtype)
    k, v = jnp.split(y_blocks @ weights.to_kv.astype(x.dtype), 2, axis=-1)
    batch, rows, columns, positions, hidden = q.shape
    channels = hidden // (4 * heads)
    # group: [3, B, rows, columns, positions, heads, channels], the first axis being queries, keys, values
    group = [
        jnp.stack(parts).reshape(3, batch, rows, columns, positions, heads, channels)
        for parts in zip(*(jnp.split(part, 4, axis=-1) for part in (q, k, v)), strict=True)
    ]

    def temperature(number, axes_after):
        return weights.temperature[number].reshape(heads, *(1,) * axes_after)

    def over_blocks_masked(logits):
        logits = communicate_over_blocks(logits, weights.b_talking)
        crosses = windows.crosses_border(rows, columns, BLOCK)[:, :, None]
        return jnp.where(crosses & shifted, logits + SHIFT_MASK, logits)

    # Ripieno: [3, B, rows, columns, m, A, K]
    spatial = attend(group[0].swapaxes(-3, -2), temperature(0, 2), over_blocks_masked)
    channel = attend(
        jnp.moveaxis(group[1], 4, 6), temperature(1, 2), lambda a: communicate_over_blocks(a, weights.l_talking)
    )
    ripieno = [spatial.swapaxes(-3, -2), jnp.moveaxis(channel, 5, 3)]

    # Concertino: [3, B, m, D, A, n]
    flat = [part.reshape(3, batch, rows * columns, positions, heads, channels) for part in group[2:]]
    channel = attend(
        flat[0].transpose(0, 1, 4, 3, 5, 2), temperature(2, 3), lambda a: communicate_over_maps(a, weights.g_talking)
    )
    spatial = attend(
        flat[1].transpose(0, 1, 4, 5, 3, 2), temperature(3, 3), lambda a: communicate_over_maps(a, weights.r_talking)
    )
    concertino = [channel.transpose(0, 4, 2, 1, 3), spatial.transpose(0, 4, 3, 1, 2)]

    shape = (batch, rows, columns, positions, hidden // 4)
    output = jnp.concatenate([part.reshape(shape) for part in (*ripieno, *concertino)], axis=-1)
    mean = output.mean(axis=(1, 2, 3), dtype=_wide(output))
    gate = (mean @ weights.sca_kernel + weights.sca_bias).astype(output.dtype)
    output = windows.merge(output * gate[:, None, None, None], BLOCK)
    return windows.roll_where(shifted, output, BLOCK // 2)
