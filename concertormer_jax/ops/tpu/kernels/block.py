"""A block of the network on features in tiles."""

import jax
import jax.numpy as jnp

from concertormer_jax.ops.reference import AttentionWeights, MLPWeights
from concertormer_jax.ops.tpu.kernels.begin import move_and_normalise
from concertormer_jax.ops.tpu.kernels.concertino import concertino
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp
from concertormer_jax.ops.tpu.kernels.ripieno import cdc_matrix, ripieno
from concertormer_jax.ops.tpu.kernels.tiles import Tiles


def block(tiles: Tiles, x, keys, first, norm, attention: AttentionWeights, mlp: MLPWeights, was_shifted, shifted, heads):
    """`ops.reference.block` of x [P, C, N]; keys: likewise, those of the normalised x where `first` is false, or None."""
    was_shifted, shifted = (jnp.asarray(flag, jnp.int32).reshape(1) for flag in (was_shifted, shifted))
    x, features = move_and_normalise(tiles, x, *norm, was_shifted, shifted)
    keys = features if keys is None else jnp.where(first, keys, features)
    temperature = attention.temperature
    cdc = attention.cdc
    projections = attention.to_q.astype(x.dtype), attention.to_kv.astype(x.dtype)

    blocks = tiles.rows // tiles.fold, tiles.columns
    inside = [cdc["ripieno_spatial"] * temperature[0][:, None], cdc["ripieno_channel"] * temperature[1][:, None]]
    largest = [jnp.abs(kernel).sum(axis=(0, 1, 2)).max() for kernel in inside]
    bounded = (jnp.stack(largest) <= LARGEST).astype(jnp.int32)
    matrices = [cdc_matrix(blocks, heads, kernel) for kernel in inside]
    in_blocks, sums_in = ripieno(tiles, features, keys, *projections, *matrices, heads, shifted, bounded)

    channel = cdc["concertino_channel"] * temperature[2][:, None, None, None]  # spqt
    spatial = cdc["concertino_spatial"] * temperature[3][:, None, None, None]  # scdt
    between = channel.transpose(3, 2, 0, 1), spatial.transpose(3, 2, 0, 1)
    matrices = [matrix.reshape(matrix.shape[0] * matrix.shape[1], -1) for matrix in between]
    across, sums_across = concertino(tiles, features, keys, *projections, *matrices, heads)

    sums = jnp.concatenate([sums_in, sums_across], axis=0)
    return gated_mlp(tiles, x, features, in_blocks, across, sums, shifted, mlp, attention.sca_kernel, attention.sca_bias)


LARGEST = 29.0  # up to which bound of logits neither exponentials nor their sums leave float32 and bfloat16
