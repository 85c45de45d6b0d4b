"""A block of the network on features in tiles: forward as kernels, and a form of it for derivatives.

In `differentiable_block` what was attended is given, and kernels go back through it. It is for `jax.vjp` alone: its
derivatives are the block's, while its result is not computed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.ops.reference import CONCERTO, NORM_EPSILON, AttentionWeights, MLPWeights
from concertormer_jax.ops.shared.attention import attend
from concertormer_jax.ops.shared.cdc import cdc_of
from concertormer_jax.ops.shared.groups import Parameters, for_every_channel, parameters_by_group
from concertormer_jax.ops.tpu.concerto import SPATIAL
from concertormer_jax.ops.tpu.kernels.concertino import concertino
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp, gated_mlp_backward
from concertormer_jax.ops.tpu.kernels.moves import move_and_normalise
from concertormer_jax.ops.tpu.kernels.ripieno import ripieno
from concertormer_jax.ops.tpu.kernels.ripieno_backward import ripieno_backward
from concertormer_jax.ops.tpu.kernels.ripieno_backward_layout import lane_matrix
from concertormer_jax.ops.tpu.kernels.ripieno_layout import cdc_matrix
from concertormer_jax.ops.tpu.kernels.tiles import Tiles

LARGEST = 29.0  # up to this bound of logits, their exponentials, and sums and quotients of these, stay in float32


class Flags(NamedTuple):
    """What a kernel is told of a block: int32 [1] each, 1 for true."""

    shifted: jax.Array  # its tiles begin HALF pixels below and to the right of the map's corner
    was_shifted: jax.Array  # those of the features that it is given do
    first: jax.Array  # it is the first of its stage


def flags_of(position, shift: bool) -> Flags:
    """The flags of block `position` of a stage. shift: whether every other block is shifted."""
    flags = shift & (position % 2 == 1), shift & (position % 2 == 0) & (position > 0), position == 0
    return Flags(*(jnp.asarray(flag, jnp.int32).reshape(1) for flag in flags))


def block(tiles: Tiles, x, keys, flags: Flags, weights, heads: int):
    """`ops.reference.block` of x [P, C, N], whose tiles lie as the block before left them.

    keys: normalised features of the same shape, which a stage's first block attends to; None for none. weights: (norm,
    attention, mlp). Returns the result, and what the derivatives need: x as the tiles of this block lie, and the
    attended channels of Ripieno and Concertino, [P, h / 2, N] each.
    """
    norm, attention, mlp = weights
    x, features, *others = move_and_normalise(tiles, x, *norm, flags.was_shifted, flags.shifted, keys, flags.first)
    keys = others[0] if others else features
    projections = attention.to_q.astype(x.dtype), attention.to_kv.astype(x.dtype)

    inside = [_tempered(attention, group, -1) for group in CONCERTO[:2]]  # [3, 3, s, t]
    blocks = tiles.rows // tiles.fold, tiles.columns
    matrices = [cdc_matrix(blocks, heads, kernel) for kernel in inside]
    bounded = _bounded(*((kernel, (0, 1, 2)) for kernel in inside))
    shifted = flags.shifted
    in_blocks, sums_in_blocks = ripieno(tiles, features, keys, *projections, *matrices, heads, shifted, bounded)

    between = [_tempered(attention, group, (1, 2, 3)) for group in CONCERTO[2:]]  # [s, p, q, t], [s, c, d, t]
    matrices = [kernel.transpose(3, 2, 0, 1) for kernel in between]
    matrices = [kernel.reshape(kernel.shape[0] * kernel.shape[1], -1) for kernel in matrices]
    bounded = _bounded(*((kernel, (0, 1)) for kernel in between))
    across, sums_across = concertino(tiles, features, keys, *projections, *matrices, heads, bounded)

    sums = jnp.concatenate([sums_in_blocks, sums_across], axis=0)
    sca = attention.sca_kernel, attention.sca_bias
    mlp = jax.tree.map(lambda kernel: kernel.astype(x.dtype), mlp)
    return gated_mlp(tiles, x, features, in_blocks, across, sums, shifted, mlp, *sca), (x, in_blocks, across)


def _tempered(attention: AttentionWeights, group: str, axes):
    """The group's CDC weights times the temperatures of the heads s. axes: where these get axes of length 1."""
    temperature = attention.temperature[CONCERTO.index(group)]  # ty: ignore[not-subscriptable]  # of published blocks
    return attention.cdc[group] * jnp.expand_dims(temperature, axes)


def _bounded(*kernels):
    """Int32 [groups], 1 where the CDC weights, times the temperatures, keep the exponentials of all logits finite.

    A logit after CDC is a sum of cosines times weights. kernels: (weights, the axes that it is summed over) of a group.
    """
    largest = [jnp.abs(kernel).sum(axis=axes).max() for kernel, axes in kernels]
    return (jnp.stack(largest) <= LARGEST).astype(jnp.int32)


def communication(tiles: Tiles, weights):
    """The `lane_matrix` of each group of the Ripieno."""
    _, attention, _ = weights
    return [
        lane_matrix(tiles, attention.cdc[own.group] * own.required_temperature)
        for own in parameters_by_group(attention, CONCERTO[:2], attention.to_q.dtype)
    ]


def differentiable_block(tiles: Tiles, x, keys, flags: Flags, weights, matrices, attended, heads: int):
    """A function with the derivatives of `block`, for at most `tiles.fold` pictures.

    x: [b, P, C, N], as the tiles of this block lie; keys: normalised features likewise, used if flags.first, or None;
    matrices: `communication` of the weights; attended: the attended channels of Ripieno and Concertino, [b, P, h / 2,
    N] each.
    """
    norm, attention, mlp = weights
    features = layer_norm(x, *norm)
    keys = None if keys is None else jnp.where(flags.first == 1, keys, features)
    parameters = list(parameters_by_group(attention, CONCERTO, x.dtype))

    ripieno = []
    for own, matrix, known in zip(parameters[:2], matrices, jnp.split(attended[0], 2, axis=2), strict=True):
        kernels = own.to_q, own.to_k, own.to_v
        spatial = own.group == "ripieno_spatial"
        ripieno.append(_ripieno(tiles, spatial, heads, features, keys, kernels, matrix, flags.shifted, known))
    sources = (features, features) if keys is None else (features, keys)
    concertino = jax.vmap(lambda x, y: jnp.concatenate(_concertino(tiles, heads, x, y, *parameters[2:]), axis=1))
    halves = jnp.concatenate(ripieno, axis=2), _with_derivatives_of(concertino(*sources), attended[1])
    to_hidden = jax.vmap(lambda *halves: _gated_hidden(attention, mlp, halves))(*halves)
    weights = mlp._replace(to_hidden=to_hidden)
    return x + _mlp(tiles, features, *halves, flags.shifted, weights)


def layer_norm(x, scale, bias):
    """Of x [..., C, N], over the channels."""
    centred = x.astype(jnp.float32)
    centred -= centred.mean(axis=-2, keepdims=True)
    deviation = jnp.square(centred).mean(axis=-2, keepdims=True)
    normal = centred * jax.lax.rsqrt(deviation + NORM_EPSILON)
    return (normal * scale[:, None] + bias[:, None]).astype(x.dtype)


def _concertino(tiles: Tiles, heads: int, x, y, channel: Parameters, spatial: Parameters):
    """The attended channels [P, G, N] of the Concertino's two groups, for features [P, C, N] of one picture."""
    shape = x.shape[0], -1, x.shape[2]
    x, y = _whole_blocks(tiles, x), _whole_blocks(tiles, y)

    def projected(own, axes):
        sources = ((x, own.to_q), (y, own.to_k), (y, own.to_v))
        return [_rounded_first(jnp.einsum(f"pcn,cg->{axes}", *source))[None] for source in sources]

    q, k, v = (part.reshape(1, part.shape[1], heads, -1, part.shape[3]) for part in projected(channel, "pgn"))
    of_channels = attend(SPATIAL, q, k, v, channel.required_temperature, _cdc(channel))
    of_channels = of_channels.reshape(of_channels.shape[1], -1, of_channels.shape[-1])
    q, k, v = (part.swapaxes(0, 1) for part in projected(spatial, "gpn"))
    of_positions = attend(SPATIAL, q, k, v, *for_every_channel(spatial.required_temperature, _cdc(spatial), q))
    results = of_channels, of_positions[:, 0].swapaxes(0, 1)
    return [_as_tiles(tiles, _rounded_first(result)).reshape(shape) for result in results]


@jax.custom_vjp
def _rounded_first(features):
    """The features. Their gradient is rounded to their type before XLA changes its layout, not after."""
    return features


_rounded_first.defvjp(lambda features: (features, None), lambda _, given: (jax.lax.optimization_barrier(given),))


def _cdc(own):
    def inside_blocks(*_):
        raise NotImplementedError("the Concertino attends across blocks")

    return cdc_of(own.group, CONCERTO, own.cdc, own.required_temperature, inside_blocks)


def _whole_blocks(tiles, features):
    """[P, C, N] of tiles to [64, C, n] of blocks."""
    if tiles.fold == 1:
        return features
    channels = features.shape[1]
    apart = features.reshape(tiles.pixels, channels, -1, tiles.fold, tiles.columns)
    return apart.transpose(3, 0, 1, 2, 4).reshape(tiles.fold * tiles.pixels, channels, -1)


def _as_tiles(tiles, features):
    """The inverse of `_whole_blocks`."""
    if tiles.fold == 1:
        return features
    apart = features.reshape(tiles.fold, tiles.pixels, features.shape[1], -1, tiles.columns)
    return apart.transpose(1, 2, 3, 0, 4).reshape(tiles.pixels, features.shape[1], -1)


def _gated_hidden(attention: AttentionWeights, mlp: MLPWeights, halves):
    """`to_hidden` times the gates of the simplified channel attention.

    halves: of the attended channels, [P, h / 2, N] each.
    """
    count = halves[0].shape[0] * halves[0].shape[2]
    mean = jnp.concatenate([half.astype(jnp.float32).sum(axis=(0, 2)) / count for half in halves])
    gate = mean @ attention.sca_kernel + attention.sca_bias  # ty: ignore[unsupported-operator]  # of published blocks
    return mlp.to_hidden * gate[:, None]


@jax.custom_vjp
def _with_derivatives_of(computed, value):
    """`value`, with the derivatives of `computed`."""
    return value


_with_derivatives_of.defvjp(lambda _, value: (value, None), lambda _, gradient: (gradient, None))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ripieno(tiles, spatial, heads, x, y, kernels, matrix, shifted, known):
    """`known`, a group's attended channels, with the derivatives of `ripieno_backward`. y: None for x."""
    return known


def _ripieno_forward(tiles, spatial, heads, x, y, kernels, matrix, shifted, known):
    return known, (x, y, kernels, matrix, shifted)


def _ripieno_backward(tiles, spatial, heads, saved, gradient):
    x, y, kernels, matrix, shifted = saved
    source = x if y is None else y
    *projected, by_matrix = ripieno_backward(tiles, spatial, x, source, gradient, kernels, matrix, heads, shifted)
    by_x, *by_y = [jnp.einsum("bpgn,cg->bpcn", rows, kernel) for rows, kernel in zip(projected, kernels, strict=True)]
    by_kernels = [
        jnp.einsum("bpcn,bpgn->cg", features, rows, preferred_element_type=jnp.float32).astype(x.dtype)
        for features, rows in zip((x, source, source), projected, strict=True)
    ]
    by_source = sum(by_y)
    by_features = (by_x + by_source, None) if y is None else (by_x, by_source)
    return *by_features, tuple(by_kernels), by_matrix, None, None


_ripieno.defvjp(_ripieno_forward, _ripieno_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(tiles, features, ripieno, concertino, shifted, weights: MLPWeights):
    """Zeros with the derivatives of `gated_mlp_backward`. weights: with a `to_hidden` for each picture."""
    return jnp.zeros_like(features)


def _mlp_forward(tiles, features, ripieno, concertino, shifted, weights):
    given = features, ripieno, concertino, shifted, weights
    return _mlp(tiles, *given), given


def _mlp_backward(tiles, saved, gradient):
    features, ripieno, concertino, shifted, weights = saved
    mlp = jax.tree.map(lambda kernel: kernel.astype(features.dtype), weights)
    found = []
    for own, to_hidden in zip(zip(features, ripieno, concertino, gradient, strict=True), mlp.to_hidden, strict=True):
        found.append(gated_mlp_backward(tiles, *own, shifted, mlp._replace(to_hidden=to_hidden)))
    by_features, by_ripieno, by_concertino, by_weights = zip(*found, strict=True)
    by_uz, by_taps, by_hidden, by_output = zip(*by_weights, strict=True)
    by_mlp = MLPWeights(sum(by_uz), sum(by_taps), jnp.stack(by_hidden), sum(by_output))
    return *(jnp.stack(maps) for maps in (by_features, by_ripieno, by_concertino)), None, by_mlp


_mlp.defvjp(_mlp_forward, _mlp_backward)
