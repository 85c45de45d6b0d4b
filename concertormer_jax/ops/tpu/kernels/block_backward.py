"""A block on features in tiles as its derivatives see it: what was attended is given, and kernels go back through it.

`differentiable_block` is for `jax.vjp` alone: its derivatives are the block's, while its result is not computed.
"""

from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.ops.reference import CONCERTO, NORM_EPSILON, AttentionWeights, MLPWeights
from concertormer_jax.ops.shared.attention import attend
from concertormer_jax.ops.shared.cdc import cdc_of
from concertormer_jax.ops.shared.groups import Parameters, for_every_channel, parameters_by_group
from concertormer_jax.ops.tpu.concerto import SPATIAL
from concertormer_jax.ops.tpu.kernels.begin import Flags
from concertormer_jax.ops.tpu.kernels.mlp_backward import gated_mlp_backward
from concertormer_jax.ops.tpu.kernels.ripieno_backward import ripieno_backward
from concertormer_jax.ops.tpu.kernels.ripieno_backward_layout import lane_matrix
from concertormer_jax.ops.tpu.kernels.tiles import Tiles


def communication(tiles: Tiles, weights):
    """The `lane_matrix` of each of the Ripieno's groups, which all pictures share."""
    _, attention, _ = weights
    return [
        lane_matrix(tiles, attention.cdc[own.group] * own.required_temperature)
        for own in parameters_by_group(attention, CONCERTO[:2], attention.to_q.dtype)
    ]


def differentiable_block(tiles: Tiles, x, keys, flags: Flags, weights, matrices, attended, heads: int):
    """A function with the derivatives of `block`, of at most `tiles.fold` pictures.

    x: [b, P, C, N], as the tiles of this block lie; keys: likewise, normalised, for where flags.first, or None;
    matrices: `communication` of the weights; attended: what `ripieno` and `concertino` returned of all pictures,
    [b, P, h / 2, N] each.
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
    concertino = jax.vmap(lambda x, y: jnp.concatenate(concertino_of(tiles, heads, x, y, *parameters[2:]), axis=1))
    halves = jnp.concatenate(ripieno, axis=2), _known(concertino(*sources), attended[1])
    to_hidden = jax.vmap(lambda *halves: _gated_hidden(attention, mlp, halves))(*halves)
    weights = mlp._replace(to_hidden=to_hidden)
    return x + _mlp(tiles, features, *halves, flags.shifted, weights)


def layer_norm(x, scale, bias):
    """Over the channels of x [..., C, N]."""
    centred = x.astype(jnp.float32)
    centred -= centred.mean(axis=-2, keepdims=True)
    deviation = jnp.square(centred).mean(axis=-2, keepdims=True)
    normal = centred * jax.lax.rsqrt(deviation + NORM_EPSILON)
    return (normal * scale[:, None] + bias[:, None]).astype(x.dtype)


def concertino_of(tiles: Tiles, heads: int, x, y, channel: Parameters, spatial: Parameters):
    """The attended channels [P, G, N] of the Concertino's two groups."""
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
    """`features`, whose gradient XLA moves to another layout in their type, not in the float32 that it adds up in."""
    return features


_rounded_first.defvjp(lambda features: (features, None), lambda _, given: (jax.lax.optimization_barrier(given),))


def _cdc(own):
    def inside_blocks(*_):
        raise NotImplementedError("the Concertino attends across blocks")

    return cdc_of(own.group, CONCERTO, own.cdc, own.required_temperature, inside_blocks)


def _whole_blocks(tiles, features):
    """[P, C, N] of tiles to that of blocks."""
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
    """`to_hidden` behind the simplified channel attention."""
    count = halves[0].shape[0] * halves[0].shape[2]
    mean = jnp.concatenate([half.astype(jnp.float32).sum(axis=(0, 2)) / count for half in halves])
    gate = mean @ attention.sca_kernel + attention.sca_bias  # ty: ignore[unsupported-operator]  # of published blocks
    return mlp.to_hidden * gate[:, None]


@jax.custom_vjp
def _known(computed, value):
    """`value`, whose derivatives are those of `computed`."""
    return value


_known.defvjp(lambda _, value: (value, None), lambda _, gradient: (gradient, None))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ripieno(tiles, spatial, heads, x, y, kernels, matrix, shifted, known):
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
    """weights: with `to_hidden` of each picture."""
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
