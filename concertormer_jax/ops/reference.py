"""The network's block as the paper writes it: the specification of all other forms of these operations.

Concerto self-attention (section 3) with its cross-dimensional communication (CDC) and simplified channel attention
(SCA), the gated-dconv MLP, and the test-time local converter (TLC). No form is chosen by platform, and derivatives are
the automatic ones. Letters in shapes and products, a second letter of a kind being a second axis of that kind:

    b pictures   H W pixels   n blocks (y x: rows and columns of them)   p q positions in a block   C channels of a map
    m heads (s before CDC, t after it)    c d channels of a head         G groups                   h = G m c

Features keep their type. Logits and softmax are computed in float32, or in a wider type of the features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

MASK = -100.0  # added to the logits of pairs that must not see each other
SMALLEST_SQUARED_NORM = 1e-24  # of a query or key that is normalised: smaller ones are divided by 1e-12
NORM_EPSILON = 1e-6  # added to the variance of the layer norm


class Group(NamedTuple):
    """What a group of heads multiplies: queries and keys to logits, softmax(logits) and values to its result."""

    logits: str
    result: str
    normalised_over: str | None  # axes of bnpmc; None: not normalised and without a temperature
    cdc: str | None = None  # the product of logits and CDC weights; "blocks": a 3x3 convolution over the grid of blocks


GROUPS = {
    "ripieno_spatial": Group("bnpmc,bnqmc->bnmpq", "bnmpq,bnqmc->bnpmc", "c", "blocks"),
    "ripieno_channel": Group("bnpmc,bnpmd->bnmcd", "bnmcd,bnpmd->bnpmc", "p", "blocks"),
    "concertino_channel": Group("bnpmc,bnpmd->bpmcd", "bpmcd,bnpmd->bnpmc", "n", "bpscd,psqt->bqtcd"),
    "concertino_spatial": Group("bnpmc,bnqmc->bmcpq", "bmcpq,bnqmc->bnpmc", "n", "bscpq,scdt->btdpq"),
    # Not the paper's, for comparison: plain attention in each block, and Restormer's between channels of all pixels.
    "window": Group("bnpmc,bnqmc->bnmpq", "bnmpq,bnqmc->bnpmc", None),
    "transposed": Group("bnpmc,bnpmd->bmcd", "bmcd,bnpmd->bnpmc", "np"),
}
CONCERTO = tuple(GROUPS)[:4]
MASKED = ("ripieno_spatial", "window")


class AttentionWeights(NamedTuple):
    """Parameters of one attention.

    cdc: by group, of those that have CDC. For the groups inside blocks [3, 3, s, t] (down, right, head in,
    head out), for `concertino_channel` [s, p, q, t], for `concertino_spatial` [s, c, d, t].
    """

    to_q: Float[Array, "C h"]  # the output channels of all projections are in the order (group, head, channel)
    to_kv: Float[Array, "D 2*h"]  # keys first
    temperature: Float[Array, "tempered m"] | None  # the groups but `window` in their order; None if there are none
    cdc: Mapping[str, Float[Array, "_ _ _ t"]]
    sca_kernel: Float[Array, "h h"] | None = None  # None for no SCA
    sca_bias: Float[Array, " h"] | None = None


class MLPWeights(NamedTuple):
    """Parameters of the gated-dconv MLP from C to C channels with h hidden ones, in the type of the computation."""

    to_uz: Float[Array, "C 2*h"]  # u first
    depthwise: Float[Array, "3 3 h"]
    to_hidden: Float[Array, "k h"] | None  # of what attention gives; None without attention
    to_output: Float[Array, "h C"]


def block(
    x: Float[Array, "b H W C"],
    keys: Float[Array, "b H W D"] | None,
    norm: tuple[Float[Array, " C"], Float[Array, " C"]],
    attention: AttentionWeights,
    mlp: MLPWeights,
    shifted: Bool[Array, ""] | bool,
    heads: int,
    **form,
) -> Float[Array, "b H W C"]:
    """gdMLP of x, norm(x) and CSA(norm(x), keys), which adds x. keys: normalised features, or None for norm(x).

    norm: scale and bias. form: further settings of `concerto_attention`.
    """
    features = layer_norm(x, *norm)
    attended = concerto_attention(features, features if keys is None else keys, attention, shifted, heads, **form)
    return gated_mlp(x, features, attended, mlp)


def layer_norm(
    x: Float[Array, "b H W C"], scale: Float[Array, " C"], bias: Float[Array, " C"]
) -> Float[Array, "b H W C"]:
    """Over the channels of every pixel."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON) * scale + bias


def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
) -> Float[Array, "b H W C"]:
    """residual + ((attended to_hidden + depthwise3x3(u)) * z) to_output, with u, z = x to_uz."""
    u, z = jnp.split(x @ weights.to_uz, 2, axis=-1)
    u = depthwise_3x3(u, weights.depthwise)
    if attended is not None:
        u = attended @ weights.to_hidden + u  # ty: ignore[unsupported-operator]  # with `attended` never None
    return residual + (u * z) @ weights.to_output


def depthwise_3x3(maps: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C"]) -> Float[Array, "b H W C"]:
    """`conv3x3` of every channel for itself."""
    return conv3x3(maps[..., None], kernel[..., None, None])[..., 0]


@jax.jit
def conv3x3(maps: Float[Array, "b y x *e s"], kernel: Float[Array, "3 3 *f s t"]) -> Float[Array, "b y x *e t"]:
    """A convolution over y and x, zero outside. The axes *f of the kernel are those of the maps, or 1."""
    rows, columns = maps.shape[1:3]
    padded = jnp.pad(maps, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (maps.ndim - 3))
    taps = [(down, right) for down in range(3) for right in range(3)]
    terms = [
        jnp.einsum("byx...s,...st->byx...t", padded[:, i : i + rows, j : j + columns], kernel[i, j]) for i, j in taps
    ]
    return reduce(jnp.add, terms)


def concerto_attention(
    x: Float[Array, "b H W C"],
    y: Float[Array, "b H W D"],
    weights: AttentionWeights,
    shifted: Bool[Array, ""] | bool,
    heads: int,
    groups: Sequence[str] = CONCERTO,
    block: int = 8,
    tlc_window: int | None = None,
) -> Float[Array, "b H W h"]:
    """The attention of all `groups`, each with an equal part of the hidden channels, and the SCA of their results.

    x: normalised features that give the queries; y: those that give keys and values; H and W are multiples of `block`,
    the side of a block in pixels. shifted: move the blocks by half of it, circularly. tlc_window: side in pixels of the
    TLC's windows. The channels h of the result are in the order (group, head, channel).
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
        gate = mean @ weights.sca_kernel + weights.sca_bias  # ty: ignore[unsupported-operator]  # both or neither
        return (output * gate).astype(x.dtype)

    return on_map(x, y) if tlc_window is None else on_windows(on_map, (x, y), tlc_window)


def projected(x, y, weights, shifted, heads, groups, block) -> Iterator[tuple]:
    """Yield every group's name, its q, k, v [b, n, p, m, c], and its temperature [m], or None."""
    tempered = [group for group in groups if GROUPS[group].normalised_over is not None]

    def blocks(features):  # [b, H, W, C] to [b, n, p, C]
        return partition(shift(features, -jnp.where(shifted, block // 2, 0)), block)

    q, k, v = blocks(x @ weights.to_q.astype(x.dtype)), *jnp.split(blocks(y @ weights.to_kv.astype(y.dtype)), 2, -1)
    for group, *qkv in zip(groups, *(jnp.split(part, len(groups), axis=-1) for part in (q, k, v)), strict=True):
        by_heads = [part.reshape(*part.shape[:3], heads, -1).astype(wide(part)) for part in qkv]
        yield group, *by_heads, weights.temperature[tempered.index(group)] if group in tempered else None


def group_logits(
    group: str,
    q: Float[Array, "b n p m c"],
    k: Float[Array, "b n p m c"],
    temperature: Float[Array, " m"] | None,
    weights: AttentionWeights,
    shifted: Bool[Array, ""] | bool,
    groups: Sequence[str],
    columns: int,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The logits of `group` before CDC and mask, and after them. columns: of the grid of n blocks."""
    if temperature is None:
        q = q * q.shape[-1] ** -0.5
    else:
        axes = tuple("bnpmc".index(axis) for axis in GROUPS[group].normalised_over or "")
        q, k = normalise(q, axes) * temperature[:, None], normalise(k, axes)
    before = after = jnp.einsum(GROUPS[group].logits, q, k)
    if group in weights.cdc:
        after = apply_cdc(group, before, weights.cdc[group], columns)
    elif group.startswith("ripieno") and group.replace("ripieno", "concertino") in groups:
        after = before - before.mean(axis=1, keepdims=True)  # over blocks: what the Concertino attends with
    if group in MASKED:
        hidden = across_border(before.shape[1], before.shape[-1], columns)[:, None] & shifted  # n1pq
        after = jnp.where(hidden, after + MASK, after)
    return before, after


def normalise(features: Float[Array, "*shape"], axes: tuple[int, ...]) -> Float[Array, "*shape"]:
    """features / max(norm, 1e-12) with the L2 norm over `axes`."""
    squared = jnp.square(features).sum(axis=axes, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


def apply_cdc(
    group: str, logits: Float[Array, "*shape"], cdc: Float[Array, "_ _ _ t"], columns: int
) -> Float[Array, "*shape"]:
    """CDC: a linear map of the logits that mixes heads with blocks, positions or channels."""
    product = GROUPS[group].cdc
    if product != "blocks":
        # TensorFlow's converter for LiteRT needs the summed axes in the same order on both sides.
        return jnp.einsum(product, logits, cdc.swapaxes(0, 1) if group == "concertino_channel" else cdc)
    batch, blocks, heads = logits.shape[:3]
    grid = logits.reshape(batch, blocks // columns, columns, heads, -1)  # byxse, e being p q or c d
    mixed = conv3x3(jnp.moveaxis(grid, 3, -1), cdc[:, :, None])  # byxet
    return jnp.moveaxis(mixed, -1, 3).reshape(logits.shape)


def softmax(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Over the last axis; the maximum is subtracted, as CDC has no bound."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return weights / weights.sum(axis=-1, keepdims=True)


def across_border(blocks: int, positions: int, columns: int) -> Bool[np.ndarray, "n p p"]:
    """Which pairs of positions in a block of a shifted map lie on two sides of the map's border.

    blocks: in the map; columns: blocks in a row of it; positions: in a block.
    """
    size = round(positions**0.5)
    height, width = blocks // columns * size, columns * size
    half = size // 2
    side = 2 * (np.arange(height) >= height - half)[:, None] + (np.arange(width) >= width - half)  # HW
    parts = side.reshape(height // size, size, columns, size).swapaxes(1, 2).reshape(blocks, positions)
    return parts[:, :, None] != parts[:, None, :]


def shift(features: Float[Array, "b H W C"], pixels: Array | int) -> Float[Array, "b H W C"]:
    """Move the features down and right by `pixels`, circularly."""
    return jnp.roll(features, (pixels, pixels), axis=(1, 2))  # ty: ignore[invalid-argument-type]  # traced ones too


def partition(features: Float[Array, "b H W C"], size: int) -> Float[Array, "b n p C"]:
    """Cut blocks of size x size pixels, row by row outside and inside."""
    batch, height, width, channels = features.shape
    blocks = features.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return blocks.reshape(batch, -1, size * size, channels)


def merge(blocks: Float[Array, "b n p C"], size: int, height: int, width: int) -> Float[Array, "b H W C"]:
    """The inverse of `partition`."""
    batch, _, _, channels = blocks.shape
    features = blocks.reshape(batch, height // size, width // size, size, size, channels).swapaxes(2, 3)
    return features.reshape(batch, height, width, channels)


def transposed_attention(
    q: Float[Array, "b H W mc"],
    k: Float[Array, "b H W mc"],
    v: Float[Array, "b H W mc"],
    temperature: Float[Array, " m"],
) -> Float[Array, "b H W mc"]:
    """Restormer's attention between the channels of every head, queries and keys normalised over all pixels."""
    (*shape, channels), heads, group = q.shape, len(temperature), GROUPS["transposed"]
    one_block = (shape[0], 1, -1, heads, channels // heads)  # bnpmc
    wide_q, wide_k, wide_v = (part.reshape(one_block).astype(wide(part)) for part in (q, k, v))
    wide_q, wide_k = normalise(wide_q, (1, 2)) * temperature[:, None], normalise(wide_k, (1, 2))
    attended = jnp.einsum(group.result, softmax(jnp.einsum(group.logits, wide_q, wide_k)), wide_v)
    return attended.reshape(q.shape).astype(q.dtype)


def on_windows(
    function: Callable[..., Float[Array, "b h w D"]], features: Sequence[Float[Array, "b H W _"]], window: int
) -> Float[Array, "b H W D"]:
    """TLC: `function` of overlapping windows of feature maps; where they overlap, their mean."""
    height, width = features[0].shape[1:3]
    results, counts = [], []
    for top in window_starts(height, window):
        for left in window_starts(width, window):
            place = slice(None), slice(top, top + window), slice(left, left + window)
            result = function(*(array[place] for array in features))
            empty = jnp.zeros((*features[0].shape[:3], result.shape[-1]), result.dtype)
            results.append(empty.at[place].set(result))
            counts.append(empty.at[place].set(1))
    return reduce(jnp.add, results) / reduce(jnp.add, counts)


def window_starts(size: int, window: int) -> list[int]:
    """Where the windows begin along an axis of `size` pixels; the last one ends at the border.

    The windows are `min(size, window)` long, as few as cover the axis, and evenly spread.
    """
    window = min(size, window)
    count = -(-size // window)
    step = window if count == 1 else -(-(size - window) // (count - 1))
    return [min(i * step, size - window) for i in range(count)]


def wide(features: Float[Array, "..."]) -> np.dtype:
    """float32, or the type of `features` if that is wider."""
    return jnp.promote_types(features.dtype, jnp.float32)
