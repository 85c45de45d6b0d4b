"""Concerto self-attention: four groups of heads over 8x8 blocks (paper, section 3.1 and 3.2).

Letters in the einsums: b image, n block, p and q positions in a block (64), m and t heads, i and j channels of a head.
Queries, keys and values have the shape [B, rows, columns, 64, m, c], blocks row-major. Products are accumulated, and
logits and softmax computed, in float32 whatever the type of the inputs.

q and k are normalised after their product: the logits are scaled by the inverse norms, which touches the small
attention maps in place of the large feature maps.
"""

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


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=_wide(left))


def _inverse_norm(features: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """1 / max(norm, 1e-12) over `axes`, kept as axes of length one, in float32."""
    squared = jnp.sum(jnp.square(features.astype(_wide(features))), axis=axes, keepdims=True)
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


def _mix(equation: str, logits: jax.Array, values: jax.Array) -> jax.Array:
    attention = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum(equation, attention, values)


def ripieno_spatial(q, k, v, temperature, kernel, shifted):
    """Attention between the positions of each block (Rs). temperature: [m]; kernel: [3, 3, m, m]."""
    rows, columns = q.shape[1:3]
    logits = _product("brcpmi,brcqmi->brcmpq", q, k)
    inverse_q = _inverse_norm(q, (-1,)) * temperature[:, None]
    inverse_k = _inverse_norm(k, (-1,))
    logits *= jnp.moveaxis(inverse_q, 3, 4) * jnp.moveaxis(inverse_k, 3, 5)
    logits = communicate_over_blocks(logits, kernel)
    crosses = windows.crosses_border(rows, columns, BLOCK)[:, :, None]
    logits = jnp.where(crosses & shifted, logits + SHIFT_MASK, logits)
    return _mix("brcmpq,brcqmi->brcpmi", logits, v)


def ripieno_channel(q, k, v, temperature, kernel):
    """Attention between the channels of each block (Rc). temperature: [m]; kernel: [3, 3, m, m]."""
    logits = _product("brcpmi,brcpmj->brcmij", q, k)
    inverse_q = _inverse_norm(q, (3,)) * temperature[:, None]
    inverse_k = _inverse_norm(k, (3,))
    logits *= jnp.moveaxis(inverse_q, 3, 5) * jnp.moveaxis(inverse_k, 3, 4)
    logits = communicate_over_blocks(logits, kernel)
    return _mix("brcmij,brcpmj->brcpmi", logits, v)


def concertino_channel(q, k, v, temperature, kernel):
    """Attention between channels, one map per position of the block, summed over all blocks (Cc).

    temperature: [m]; kernel: [m, 64, 64, m] (head in, position in, position out, head out).
    """
    logits = _product("brcpmi,brcpmj->bmpij", q, k)
    inverse_q = _inverse_norm(q, (1, 2)) * temperature[:, None]
    inverse_k = _inverse_norm(k, (1, 2))
    logits *= jnp.einsum("brcpmi->bmpi", inverse_q)[..., :, None] * jnp.einsum("brcpmj->bmpj", inverse_k)[..., None, :]
    logits = jnp.einsum("mpqt,bmpij->btqij", kernel, logits)
    return _mix("bmpij,brcpmj->brcpmi", logits, v)


def concertino_spatial(q, k, v, temperature, kernel):
    """Attention between positions, one map per channel, summed over all blocks (Cs).

    temperature: [m]; kernel: [m, c, c, m] (head in, channel in, channel out, head out).
    """
    logits = _product("brcpmi,brcqmi->bmipq", q, k)
    inverse_q = _inverse_norm(q, (1, 2)) * temperature[:, None]
    inverse_k = _inverse_norm(k, (1, 2))
    logits *= jnp.einsum("brcpmi->bmip", inverse_q)[..., :, None] * jnp.einsum("brcqmi->bmiq", inverse_k)[..., None, :]
    logits = jnp.einsum("mijt,bmipq->btjpq", kernel, logits)
    return _mix("bmipq,brcqmi->brcpmi", logits, v)


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
    dtype = x.dtype

    def blocks(features):
        return windows.partition(windows.roll_where(shifted, features, -BLOCK // 2), BLOCK)

    def groups(features):  # [B, rows, columns, 64, h] to four times [B, rows, columns, 64, m, c]
        return [g.reshape(*g.shape[:-1], heads, -1) for g in jnp.split(features, 4, axis=-1)]

    x_blocks = blocks(x)
    y_blocks = x_blocks if y is x else blocks(y)
    q = groups(x_blocks @ weights.to_q.astype(dtype))
    k, v = (groups(part) for part in jnp.split(y_blocks @ weights.to_kv.astype(dtype), 2, axis=-1))
    t = weights.temperature
    mixed = [
        ripieno_spatial(q[0], k[0], v[0], t[0], weights.b_talking, shifted),
        ripieno_channel(q[1], k[1], v[1], t[1], weights.l_talking),
        concertino_channel(q[2], k[2], v[2], t[2], weights.g_talking),
        concertino_spatial(q[3], k[3], v[3], t[3], weights.r_talking),
    ]
    output = jnp.concatenate([o.reshape(*o.shape[:-2], -1) for o in mixed], axis=-1)
    mean = output.mean(axis=(1, 2, 3), dtype=_wide(output))
    gate = (mean @ weights.sca_kernel + weights.sca_bias).astype(dtype)
    output = windows.merge(output * gate[:, None, None, None], BLOCK)
    return windows.roll_where(shifted, output, BLOCK // 2)
