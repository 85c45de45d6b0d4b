"""A block of the network on features in tiles."""

import jax
import jax.numpy as jnp

from concertormer_jax.ops.reference import CONCERTO, AttentionWeights
from concertormer_jax.ops.tpu.kernels.begin import Flags, move_and_normalise
from concertormer_jax.ops.tpu.kernels.concertino import concertino
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp
from concertormer_jax.ops.tpu.kernels.ripieno import cdc_matrix, ripieno
from concertormer_jax.ops.tpu.kernels.softmax import LARGEST
from concertormer_jax.ops.tpu.kernels.tiles import Tiles


def block(tiles: Tiles, x, keys, flags: Flags, weights, heads: int):
    """`ops.reference.block` of x [P, C, N], whose tiles lie as the block before it in the stage left them.

    Returns the result, and what derivatives need: x as this block's tiles lie, and what attended in blocks and across
    them [P, h / 2, N].
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
    """The group's CDC times the temperatures of the heads that it takes, which lie on the axis not in `axes`."""
    temperature = attention.temperature[CONCERTO.index(group)]  # ty: ignore[not-subscriptable]  # of published blocks
    return attention.cdc[group] * jnp.expand_dims(temperature, axes)


def _bounded(*kernels):
    """Int32 [groups], 1 where exponentials of logits stay finite, as each logit before CDC is a cosine."""
    largest = [jnp.abs(kernel).sum(axis=axes).max() for kernel, axes in kernels]
    return (jnp.stack(largest) <= LARGEST).astype(jnp.int32)
