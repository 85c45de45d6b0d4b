"""A block of the network on features in tiles."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.ops import reference
from concertormer_jax.ops.reference import AttentionWeights, MLPWeights
from concertormer_jax.ops.shared.gdmlp import gated_mlp as gated_mlp_of_map
from concertormer_jax.ops.tpu.concerto import concerto_attention
from concertormer_jax.ops.tpu.kernels.begin import move_and_normalise, normalise
from concertormer_jax.ops.tpu.kernels.concertino import concertino
from concertormer_jax.ops.tpu.kernels.cut import enter, enter_kernel, leave, leave_kernel
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp
from concertormer_jax.ops.tpu.kernels.ripieno import cdc_matrix, ripieno
from concertormer_jax.ops.tpu.kernels.softmax import LARGEST
from concertormer_jax.ops.tpu.kernels.tiles import HALF, LANES, Tiles, tiles_of


class TiledBlocks(NamedTuple):
    """How a stage's blocks run on features in tiles [b, P, C, N]."""

    tiles: Tiles
    heads: int

    def enter(self, maps: jax.Array) -> jax.Array:
        """[b, H, W, C] to tiles."""
        return _enter(self.tiles, maps)

    def leave(self, features: jax.Array, last_shifted: bool) -> jax.Array:
        """The inverse of `enter`, after a last block that was shifted or not."""
        return _leave(self.tiles, last_shifted, features)

    def layer_norm(self, features: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        """Over the channels of every pixel."""
        return _layer_norm(self.tiles, features, scale, bias)

    def block(
        self,
        x: jax.Array,
        keys: jax.Array | None,
        first: jax.Array | bool,
        norm: tuple[jax.Array, jax.Array],
        attention: AttentionWeights,
        mlp: MLPWeights,
        shifted: jax.Array | bool,
    ) -> jax.Array:
        """`ops.reference.block`; keys: those of the first block, None for no others than those of the normalised x.

        shifted: whether this block is; then the one before it is not, and the other way round. False for never.
        """
        was_shifted = False if shifted is False else ~(first | shifted)
        return _block(self.tiles, self.heads, x, keys, first, norm, attention, mlp, was_shifted, shifted)


def tiled_blocks(height: int, width: int, channels: int, hidden: int, heads: int, dtype) -> TiledBlocks | None:
    """Of a stage whose maps have so many pixels and channels; None where the kernels do not take them.

    hidden: channels of the attention's result, in the four groups of the published network, with blocks of 8x8 pixels.
    """
    tiles = tiles_of(height, width, channels, hidden, heads, dtype)
    return None if tiles is None else TiledBlocks(tiles, heads)


def _of_each(function, arrays):
    """`function` of each picture's arrays; of a single one without a loop."""
    if len(jax.tree.leaves(arrays)[0]) > 1:
        return jax.lax.map(function, arrays)
    return jax.tree.map(lambda a: a[None], function(jax.tree.map(lambda a: a[0], arrays)))


# Of the kernels' derivatives, those of the same without kernels are taken.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _enter(tiles, maps):
    return _of_each(partial(enter_kernel, tiles), maps) if maps.shape[-1] <= LANES else enter(tiles, maps)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _leave(tiles, shifted, features):
    if features.shape[2] > LANES:
        return leave(tiles, features, shifted)
    return _of_each(partial(leave_kernel, tiles, shifted=shifted), features)


_enter.defvjp(
    lambda tiles, maps: (_enter(tiles, maps), None),
    lambda tiles, _, gradient: (_leave(tiles, False, gradient),),
)
_leave.defvjp(
    lambda tiles, shifted, features: (_leave(tiles, shifted, features), None),
    lambda tiles, shifted, _, gradient: (_enter(tiles, reference.shift(gradient, -HALF) if shifted else gradient),),
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(tiles, features, scale, bias):
    return _of_each(lambda one: normalise(tiles, one, scale, bias), features)


def _layer_norm_backward(tiles, given, gradient):
    def plain(features, scale, bias):
        wide = features.swapaxes(2, 3).astype(reference.wide(features))
        return reference.layer_norm(wide, scale, bias).swapaxes(2, 3).astype(features.dtype)

    return jax.vjp(plain, *given)[1](gradient)


_layer_norm.defvjp(lambda tiles, *given: (_layer_norm(tiles, *given), given), _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block(tiles, heads, x, keys, first, norm, attention, mlp, was_shifted, shifted):
    def of_picture(picture):
        return _of_picture(tiles, heads, *picture, first, norm, attention, mlp, was_shifted, shifted)

    return _of_each(of_picture, (x, keys))


def _of_picture(tiles, heads, x, keys, first, norm, attention, mlp, was_shifted, shifted):
    first, was_shifted, shifted = (jnp.asarray(flag, jnp.int32).reshape(1) for flag in (first, was_shifted, shifted))
    x, features, *others = move_and_normalise(tiles, x, *norm, was_shifted, shifted, keys, first)
    keys = others[0] if others else features
    projections = attention.to_q.astype(x.dtype), attention.to_kv.astype(x.dtype)

    def tempered(group, axes):
        """The group's CDC, with the temperatures of the heads that it takes."""
        temperature = attention.temperature[reference.CONCERTO.index(group)]
        return attention.cdc[group] * jnp.expand_dims(temperature, axes)

    def bounded(*kernels):
        """Whether exponentials of logits, of which one before CDC is a cosine, stay finite."""
        largest = [jnp.abs(kernel).sum(axis=axes).max() for kernel, axes in kernels]
        return (jnp.stack(largest) <= LARGEST).astype(jnp.int32)

    inside = [tempered(group, -1) for group in ("ripieno_spatial", "ripieno_channel")]  # [3, 3, s, t]
    blocks = tiles.rows // tiles.fold, tiles.columns
    matrices = [cdc_matrix(blocks, heads, kernel) for kernel in inside]
    flags = shifted, bounded(*((kernel, (0, 1, 2)) for kernel in inside))
    in_blocks, sums_in_blocks = ripieno(tiles, features, keys, *projections, *matrices, heads, *flags)

    between = [tempered(group, (1, 2, 3)) for group in ("concertino_channel", "concertino_spatial")]
    flags = bounded((between[0], (0, 1)), (between[1], (0, 1)))
    between = [between[0].transpose(3, 2, 0, 1), between[1].transpose(3, 2, 0, 1)]  # of spqt and scdt: out, then in
    matrices = [kernel.reshape(kernel.shape[0] * kernel.shape[1], -1) for kernel in between]
    across, sums_across = concertino(tiles, features, keys, *projections, *matrices, heads, flags)

    sums = jnp.concatenate([sums_in_blocks, sums_across], axis=0)
    sca = attention.sca_kernel, attention.sca_bias
    return gated_mlp(tiles, x, features, in_blocks, across, sums, shifted, mlp, *sca)


def _forward(tiles, heads, *given):
    return _block(tiles, heads, *given), given


def _backward(tiles, heads, given, gradient):
    x, keys, first, norm, attention, mlp, was_shifted, shifted = given

    def on_map(x, keys, norm, attention, mlp):
        x = reference.shift(leave(tiles, x, False), jnp.where(was_shifted, HALF, 0))
        features = reference.layer_norm(x.astype(reference.wide(x)), *norm).astype(x.dtype)
        keys = features if keys is None else jnp.where(first, leave(tiles, keys, False), features)
        attended = concerto_attention(features, keys, attention, shifted, heads=heads)
        result = gated_mlp_of_map(x, features, attended, mlp)
        return enter(tiles, reference.shift(result, -jnp.where(shifted, HALF, 0)))

    _, derivative = jax.vjp(on_map, x, keys, norm, attention, mlp)
    x, keys, norm, attention, mlp = derivative(gradient)
    return x, keys, None, norm, attention, mlp, None, None


_block.defvjp(_forward, _backward)
