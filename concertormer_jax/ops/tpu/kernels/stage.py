"""A stage of the network on features in tiles: kernels, between which features do not change their layout."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from concertormer_jax.ops.platform import single_device_kind
from concertormer_jax.ops.reference import CONCERTO, AttentionWeights
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.begin import move_and_normalise, normalise
from concertormer_jax.ops.tpu.kernels.concertino import concertino
from concertormer_jax.ops.tpu.kernels.cut import enter, leave
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp
from concertormer_jax.ops.tpu.kernels.ripieno import cdc_matrix, ripieno
from concertormer_jax.ops.tpu.kernels.softmax import LARGEST
from concertormer_jax.ops.tpu.kernels.tiles import Tiles, tiles_of

LARGE_VMEM = ("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")  # chips with 128 MiB of VMEM


def tiled_stage(shape: tuple[int, int, int], hidden: int, heads: int, dtype: Any) -> Callable | None:
    """The form of a stage of published blocks for maps of `shape` (H, W, C); None where the kernels cannot take them.

    hidden: channels of the attention's result. The form has no derivatives and runs on a single device, whose kind
    `single_device_kind` tells. On a TPU it is for bfloat16: float32 takes too much of VMEM.
    """
    served = single_device_kind.value in LARGE_VMEM and (dtype == jnp.bfloat16 or words.interpreted())
    if not served:
        return None
    tiles = tiles_of(*shape, hidden, heads, dtype)
    return None if tiles is None else partial(_stage, tiles)


def _stage(tiles: Tiles, x, y, norm, weights, shift: bool, heads: int):
    """The stage of maps x [b, H, W, C] whose first block takes keys from y, likewise, unless it is None.

    norm: scale and bias for y; weights: those of `ops.reference.block` (norm, attention, mlp), of all blocks on a first
    axis; shift: whether every other block is shifted.
    """
    count = len(jax.tree.leaves(weights)[0])

    def of_picture(pair):
        x, y = pair
        keys = None if y is None else normalise(tiles, enter(tiles, y), *norm)

        def turn(x, turn):
            return _block(tiles, x, keys, *turn, shift, heads), None

        with jax.named_scope("blocks"):
            features = jax.lax.scan(turn, enter(tiles, x), (jnp.arange(count), weights))[0]
        return leave(tiles, features, shifted=shift and count % 2 == 0)

    if len(x) > 1:
        return jax.lax.map(of_picture, (x, y))
    return jax.tree.map(lambda maps: maps[None], of_picture(jax.tree.map(lambda maps: maps[0], (x, y))))


def _block(tiles: Tiles, x, keys, position, weights, shift: bool, heads: int):
    """`ops.reference.block` of x [P, C, N], whose tiles lie as the block before it in the stage left them."""
    norm, attention, mlp = weights
    shifted, was_shifted, first = (
        jnp.asarray(flag, jnp.int32).reshape(1)
        for flag in (shift & (position % 2 == 1), shift & (position % 2 == 0) & (position > 0), position == 0)
    )
    x, features, *others = move_and_normalise(tiles, x, *norm, was_shifted, shifted, keys, first)
    keys = others[0] if others else features
    projections = attention.to_q.astype(x.dtype), attention.to_kv.astype(x.dtype)

    inside = [_tempered(attention, group, -1) for group in CONCERTO[:2]]  # [3, 3, s, t]
    blocks = tiles.rows // tiles.fold, tiles.columns
    matrices = [cdc_matrix(blocks, heads, kernel) for kernel in inside]
    bounded = _bounded(*((kernel, (0, 1, 2)) for kernel in inside))
    in_blocks, sums_in_blocks = ripieno(tiles, features, keys, *projections, *matrices, heads, shifted, bounded)

    between = [_tempered(attention, group, (1, 2, 3)) for group in CONCERTO[2:]]  # [s, p, q, t], [s, c, d, t]
    matrices = [kernel.transpose(3, 2, 0, 1) for kernel in between]
    matrices = [kernel.reshape(kernel.shape[0] * kernel.shape[1], -1) for kernel in matrices]
    bounded = _bounded(*((kernel, (0, 1)) for kernel in between))
    across, sums_across = concertino(tiles, features, keys, *projections, *matrices, heads, bounded)

    sums = jnp.concatenate([sums_in_blocks, sums_across], axis=0)
    sca = attention.sca_kernel, attention.sca_bias
    mlp = jax.tree.map(lambda kernel: kernel.astype(x.dtype), mlp)
    return gated_mlp(tiles, x, features, in_blocks, across, sums, shifted, mlp, *sca)


def _tempered(attention: AttentionWeights, group: str, axes):
    """The group's CDC times the temperatures of the heads that it takes, which lie on the axis not in `axes`."""
    temperature = attention.temperature[CONCERTO.index(group)]  # ty: ignore[not-subscriptable]  # of published blocks
    return attention.cdc[group] * jnp.expand_dims(temperature, axes)


def _bounded(*kernels):
    """Int32 [groups], 1 where exponentials of logits stay finite, as each logit before CDC is a cosine."""
    largest = [jnp.abs(kernel).sum(axis=axes).max() for kernel, axes in kernels]
    return (jnp.stack(largest) <= LARGEST).astype(jnp.int32)
