"""The network's block as the paper writes it: the specification of all other forms of these operations.

Concerto self-attention (section 3) with its cross-dimensional communication (CDC) and simplified channel attention
(SCA), the gated-dconv MLP, and the test-time local converter (TLC). No form is chosen by platform, and derivatives are
the automatic ones. Letters in shapes and products, a second letter of a kind being a second axis of that kind:

    b pictures   H W pixels   n blocks (y x: rows and columns of them)   p q positions in a block   C channels of a map
    m heads (s before CDC, t after it)    c d channels of a head         G groups                   h = G m c

Features keep their type. Logits and softmax are computed in float32, or in a wider type of the features.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MASK = -100.0
SMALLEST_SQUARED_NORM = 1e-24
NORM_EPSILON = 1e-6


class Group(NamedTuple):
    """What a group of heads multiplies: queries and keys to logits, softmax(logits) and values to its result."""

    logits: str
    result: str
    normalised_over: str | None  # axes of bnpmc; None: not normalised and without a temperature
    cdc: str | None = None  # the product of logits and CDC weights; "blocks": a 3x3 convolution over the grid of blocks


GROUPS = {
    "ripieno_spatial": Group("bnpmc,bnqmc->bnmpq", "bnmpq,bnqmc->bnpmc", "c", "blocks"),
    "ripieno_channel": Group("bnpmc,bnpmd->bnmcd", "bnmcd,bnpmd->bnpmc", "p", "blocks"),
    "concertino_channel": Group("bnpmc,bnpmd->bpmcd", "bpmcd,bnpmd->bnpmc", "n", "bpscd,spqt->bqtcd"),
    "concertino_spatial": Group("bnpmc,bnqmc->bmcpq", "bmcpq,bnqmc->bnpmc", "n", "bscpq,scdt->btdpq"),
    # Not the paper's, for comparison: plain attention in each block, and Restormer's between channels of all pixels.
    "window": Group("bnpmc,bnqmc->bnmpq", "bnmpq,bnqmc->bnpmc", None),
    "transposed": Group("bnpmc,bnpmd->bmcd", "bmcd,bnpmd->bnpmc", "np"),
}
MASKED = ("ripieno_spatial", "window")


class AttentionWeights(NamedTuple):
    """Parameters of one attention.

    cdc: by group, of those whose logits communicate. For the groups inside blocks [3, 3, s, t] (down, right, head in,
    head out), for `concertino_channel` [s, p, q, t], for `concertino_spatial` [s, c, d, t].
    """

    to_q: jax.Array  # [C, h], as all projections with the output channels in the order (group, head, channel)
    to_kv: jax.Array  # [C, 2 h], keys first
    temperature: jax.Array | None  # [G', m], the groups but `window` in their order; None if there are none
    cdc: Mapping[str, jax.Array]
    sca_kernel: jax.Array | None = None  # [h, h]; None for no SCA
    sca_bias: jax.Array | None = None  # [h]


class MLPWeights(NamedTuple):
    """Parameters of the gated-dconv MLP from C to C channels with h hidden ones, in the type of the computation."""

    to_uz: jax.Array  # [C, 2 h], u first
    depthwise: jax.Array  # [3, 3, h]
    to_hidden: jax.Array | None  # [h', h], for what attention gives; None without attention
    to_output: jax.Array  # [h, C]


def block(
    x: jax.Array,
    keys: jax.Array | None,
    norm: tuple[jax.Array, jax.Array],
    attention: AttentionWeights,
    mlp: MLPWeights,
    shifted: jax.Array | bool,
    heads: int,
    **form,
) -> jax.Array:
    """x + gdMLP(norm(x), CSA(norm(x), keys)). x: [b, H, W, C]; keys: [b, H, W, C'], normalised, or None for norm(x).

    norm: scale and bias [C]. form: further settings of `concerto_attention`. Returns [b, H, W, C].
    """
    features = layer_norm(x, *norm)
    attended = concerto_attention(features, features if keys is None else keys, attention, shifted, heads, **form)
    return x + gated_mlp(features, attended, mlp)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Over the channels of every pixel."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON) * scale + bias


def gated_mlp(x: jax.Array, attended: jax.Array | None, weights: MLPWeights) -> jax.Array:
    """((attended to_hidden + depthwise3x3(u)) * z) to_output, with u, z = x to_uz. x: [b, H, W, C]; attended: h'."""
    u, z = jnp.split(x @ weights.to_uz, 2, axis=-1)
    u = conv3x3(u[..., None], weights.depthwise[..., None, None])[..., 0]  # a channel for itself
    return ((u if attended is None else attended @ weights.to_hidden + u) * z) @ weights.to_output


def conv3x3(maps: jax.Array, kernel: jax.Array) -> jax.Array:
    """[b, y, x, ..., s] with kernel [3, 3, ..., s, t] to [b, y, x, ..., t], zero outside."""
    rows, columns = maps.shape[1:3]
    padded = jnp.pad(maps, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (maps.ndim - 3))
    taps = [(down, right) for down in range(3) for right in range(3)]
    return sum(
        jnp.einsum("byx...s,...st->byx...t", padded[:, i : i + rows, j : j + columns], kernel[i, j]) for i, j in taps
    )


def concerto_attention(
    x: jax.Array,
    y: jax.Array,
    weights: AttentionWeights,
    shifted: jax.Array | bool,
    heads: int,
    groups: Sequence[str] = tuple(GROUPS)[:4],
    block: int = 8,
    tlc_window: int | None = None,
) -> jax.Array:
    """The attention of all `groups`, each with an equal part of the hidden channels, and the SCA of their results.

    x: [b, H, W, C], normalised features that give the queries; y: [b, H, W, C'], those that give keys and values; H and
    W multiples of `block`, the side of a block in pixels. shifted: move the blocks by half of it, circularly.
    tlc_window: side in pixels of the TLC's windows. Returns [b, H, W, h], the channels in the order (group, head, c).
    """

    def on_map(x, y):
        results = []
        for group, q, k, v, temperature in projected(x, y, weights, shifted, heads, groups, block):
            _, logits = group_logits(group, q, k, temperature, weights, shifted, groups, x.shape[2] // block)
            attended = jnp.einsum(GROUPS[group].result, softmax(logits), v).astype(x.dtype)  # bnpmc
            results.append(merge(attended.reshape(*attended.shape[:3], -1), block, *x.shape[1:3]))
        output = shift(jnp.concatenate(results, axis=-1), jnp.where(shifted, block // 2, 0))
        if weights.sca_kernel is None:
            return output
        mean = output.mean(axis=(1, 2), keepdims=True, dtype=wide(x))
        return (output * (mean @ weights.sca_kernel + weights.sca_bias)).astype(x.dtype)

    return on_map(x, y) if tlc_window is None else on_windows(on_map, (x, y), tlc_window)


def projected(x, y, weights, shifted, heads, groups, block):
    """Yield every group's name, its q, k, v [b, n, p, m, c], and its temperature [m], or None."""
    tempered = [group for group in groups if GROUPS[group].normalised_over is not None]

    def blocks(features):  # [b, H, W, C] to [b, n, p, C]
        return partition(shift(features, -jnp.where(shifted, block // 2, 0)), block)

    q, k, v = blocks(x @ weights.to_q.astype(x.dtype)), *jnp.split(blocks(y @ weights.to_kv.astype(y.dtype)), 2, -1)
    for group, *qkv in zip(groups, *(jnp.split(part, len(groups), axis=-1) for part in (q, k, v)), strict=True):
        by_heads = [part.reshape(*part.shape[:3], heads, -1).astype(wide(part)) for part in qkv]
        yield group, *by_heads, weights.temperature[tempered.index(group)] if group in tempered else None


def group_logits(group, q, k, temperature, weights, shifted, groups, columns) -> tuple[jax.Array, jax.Array]:
    """The logits of `group` before CDC and mask, and after them. q, k: [b, n, p, m, c]; columns: of the n blocks."""
    if temperature is None:
        q = q * q.shape[-1] ** -0.5
    else:
        axes = tuple("bnpmc".index(axis) for axis in GROUPS[group].normalised_over)
        q, k = normalise(q, axes) * temperature[:, None], normalise(k, axes)
    before = after = jnp.einsum(GROUPS[group].logits, q, k)
    if group in weights.cdc:
        after = communicate(group, before, weights.cdc[group], columns)
    elif group.startswith("ripieno") and group.replace("ripieno", "concertino") in groups:
        after = before - before.mean(axis=1, keepdims=True)  # over blocks: what the Concertino attends with
    if group in MASKED:
        hidden = across_border(before.shape[1], before.shape[-1], columns)[:, None] & shifted  # n1pq
        after = jnp.where(hidden, after + MASK, after)
    return before, after


def normalise(features: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """features / max(norm, 1e-12), the L2 norm being over `axes`."""
    squared = jnp.square(features).sum(axis=axes, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


def communicate(group: str, logits: jax.Array, cdc: jax.Array, columns: int) -> jax.Array:
    """CDC: a linear map of the logits that mixes heads with blocks, positions or channels. Returns logits' shape."""
    product = GROUPS[group].cdc
    if product != "blocks":
        return jnp.einsum(product, logits, cdc)
    grid = logits.reshape(logits.shape[0], -1, columns, *logits.shape[2:])  # byxsef, e f being p q or c d
    mixed = conv3x3(jnp.moveaxis(grid, 3, -1), cdc[:, :, None, None])  # byxeft
    return jnp.moveaxis(mixed, -1, 3).reshape(logits.shape)


def softmax(logits: jax.Array) -> jax.Array:
    """Over the last axis; the maximum is subtracted, as CDC has no bound."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return weights / weights.sum(axis=-1, keepdims=True)


def across_border(blocks: int, positions: int, columns: int) -> np.ndarray:
    """Which pairs of positions in a block of a shifted map lie on two sides of the map's border. npq, booleans."""
    size = round(positions**0.5)
    height, width = blocks // columns * size, columns * size
    half = size // 2
    side = 2 * (np.arange(height) >= height - half)[:, None] + (np.arange(width) >= width - half)  # HW
    parts = side.reshape(height // size, size, columns, size).swapaxes(1, 2).reshape(blocks, positions)
    return parts[:, :, None] != parts[:, None, :]


def shift(features: jax.Array, pixels: jax.Array | int) -> jax.Array:
    """Move [b, H, W, C] down and right by `pixels`, circularly."""
    return jnp.roll(features, (pixels, pixels), axis=(1, 2))


def partition(features: jax.Array, size: int) -> jax.Array:
    """[b, H, W, C] to [b, n, p, C]: blocks of size x size pixels, row by row outside and inside."""
    batch, height, width, channels = features.shape
    blocks = features.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return blocks.reshape(batch, -1, size * size, channels)


def merge(blocks: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `partition`."""
    batch, _, _, channels = blocks.shape
    features = blocks.reshape(batch, height // size, width // size, size, size, channels).swapaxes(2, 3)
    return features.reshape(batch, height, width, channels)


def on_windows(function: Callable, features: Sequence[jax.Array], window: int) -> jax.Array:
    """TLC: `function` of overlapping windows of feature maps [b, H, W, C]; where they overlap, their mean."""

    def places(size):
        length = min(size, window)
        count = -(-size // length)
        step = length if count == 1 else -(-(size - length) // (count - 1))
        starts = [min(i * step, size - length) for i in range(count)]
        return [slice(start, start + length) for start in starts]

    total, count = 0, 0
    for rows in places(features[0].shape[1]):
        for columns in places(features[0].shape[2]):
            result = function(*(array[:, rows, columns] for array in features))
            empty = jnp.zeros((*features[0].shape[:3], result.shape[-1]), result.dtype)
            total += empty.at[:, rows, columns].set(result)
            count += empty.at[:, rows, columns].set(1)
    return total / count


def wide(features: jax.Array) -> jnp.dtype:
    """float32, or the type of `features` if that is wider."""
    return jnp.promote_types(features.dtype, jnp.float32)
