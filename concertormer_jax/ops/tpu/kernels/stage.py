"""A stage of the network as kernels on features in tiles, which keep this layout from its first block to its last."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from concertormer_jax.ops.platform import single_device_kind, training_mesh
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.block import block, communication, differentiable_block, flags_of, layer_norm
from concertormer_jax.ops.tpu.kernels.moves import enter, leave, move, normalise
from concertormer_jax.ops.tpu.kernels.tiles import VMEM_BYTES, Tiles, backward_bytes, tiles_of

LARGE_VMEM = ("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")  # chips with 128 MiB of VMEM


def tiled_stage(shape: tuple[int, int, int], hidden: int, heads: int, dtype: Any) -> Callable | None:
    """The form of a stage of published blocks for maps of `shape` (H, W, C); None where the kernels cannot take them.

    hidden: channels of the attention's result. The form runs on the single device of `single_device_kind`, or on each
    device of `training_mesh`, where its derivatives need VMEM too. A TPU takes it in bfloat16 alone, as float32 needs
    too much of VMEM.
    """
    mesh = training_mesh.value
    kind = single_device_kind.value if mesh is None else mesh.devices.flat[0].device_kind
    if kind not in LARGE_VMEM or not (dtype == jnp.bfloat16 or words.interpreted()):
        return None
    tiles = tiles_of(*shape, hidden, heads, dtype)
    if tiles is None or (mesh is not None and backward_bytes(tiles, hidden, dtype) > VMEM_BYTES):
        return None
    return partial(_stage, tiles) if mesh is None else partial(_split_stage, mesh, tiles)


def _split_stage(mesh, tiles, x, y, norm, weights, shift, heads):
    """`_stage` of each device's pictures. The derivatives by the weights are summed over the devices once."""
    pictures, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def own(x, y, norm, weights):
        return _stage(tiles, x, y, norm, weights, shift, heads)

    specs = pictures, pictures, whole, whole
    split = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=pictures, check_vma=False)
    return split(x, y, norm, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def _stage(tiles: Tiles, x, y, norm, weights, shift: bool, heads: int):
    """The stage of maps x [b, H, W, C].

    y: maps likewise, from which the first block takes keys and values, or None; norm: scale and bias for y; weights:
    (norm, attention, mlp) of `ops.reference.block`, with the blocks on a first axis; shift: whether every other block
    is shifted.
    """
    count = _count(weights)

    def of_picture(pair):
        x, y = pair
        keys = None if y is None else normalise(tiles, enter(tiles, y), *norm)

        def apply(x, turn):
            position, own = turn
            return block(tiles, x, keys, flags_of(position, shift), own, heads)[0], None

        with jax.named_scope("blocks"):
            features = jax.lax.scan(apply, enter(tiles, x), (jnp.arange(count), weights))[0]
        return leave(tiles, features, shifted=_ends_shifted(count, shift))

    if len(x) > 1:
        return jax.lax.map(of_picture, (x, y))
    return jax.tree.map(lambda maps: maps[None], of_picture(jax.tree.map(lambda maps: maps[0], (x, y))))


def _stage_forward(tiles, x, y, norm, weights, shift, heads):
    """The stage and what its derivatives need: the results of `block` for every block, of all pictures."""
    keys = None if y is None else jax.lax.map(lambda maps: normalise(tiles, enter(tiles, maps), *norm), y)

    def apply(x, turn):
        position, own = turn

        def of_picture(pair):
            return block(tiles, *pair, flags_of(position, shift), own, heads)

        return jax.lax.map(of_picture, (x, keys))

    count = _count(weights)
    with jax.named_scope("blocks"):
        x = jax.lax.map(partial(enter, tiles), x)
        features, kept = jax.lax.scan(apply, x, (jnp.arange(count), weights))
    maps = jax.lax.map(partial(leave, tiles, shifted=_ends_shifted(count, shift)), features)
    return maps, (kept, y, norm, weights)


def _stage_backward(tiles, shift, heads, saved, gradient):
    kept, y, norm, weights = saved
    count = _count(weights)
    gradient = jax.lax.map(partial(enter, tiles), gradient)
    if _ends_shifted(count, shift):
        last = flags_of(jnp.asarray(count - 1), shift)
        gradient = jax.lax.map(lambda own: move(tiles, own, last.was_shifted, last.shifted), gradient)
    keys, by_keys = None, None
    if y is not None:
        keys, through_norm = jax.vjp(layer_norm, jax.lax.map(partial(enter, tiles), y), *norm)
        by_keys = jnp.zeros_like(keys)

    together = math.gcd(len(gradient), tiles.fold)

    def grouped(maps):
        return maps.reshape(-1, together, *maps.shape[1:])

    def ungrouped(maps):
        return jax.tree.map(lambda maps: maps.reshape(-1, *maps.shape[2:]), maps)

    def go_back(gradients, turn):
        position, own, (x, *attended) = turn
        flags = flags_of(position, shift)

        matrices, through_communication = jax.vjp(partial(communication, tiles), own)

        def of_pictures(total, pictures):
            x, keys, attended, gradient = pictures

            def of_block(x, keys, *shared):
                return differentiable_block(tiles, x, keys, flags, *shared, attended, heads)

            by_x, by_keys, *by_shared = jax.vjp(of_block, x, keys, own, matrices)[1](gradient)
            by_x = jnp.stack([move(tiles, own, flags.shifted, flags.was_shifted) for own in by_x])
            return jax.tree.map(jnp.add, total, tuple(by_shared)), (by_x, by_keys)

        none = jax.tree.map(jnp.zeros_like, (own, matrices))
        pictures = jax.tree.map(grouped, (x, keys, attended, gradients[0]))
        (by_own, by_matrices), (by_x, more) = jax.lax.scan(of_pictures, none, pictures)
        by_own = jax.tree.map(jnp.add, by_own, *through_communication(by_matrices))
        by_keys = jax.tree.map(jnp.add, gradients[1], ungrouped(more))
        return (ungrouped(by_x), by_keys), by_own

    with jax.named_scope("blocks"):
        turns = jnp.arange(count), weights, kept
        (by_x, by_keys), by_weights = jax.lax.scan(go_back, (gradient, by_keys), turns, reverse=True)

    def left(features):
        return jax.lax.map(partial(leave, tiles, shifted=False), features)

    if y is None:
        return left(by_x), None, None, by_weights
    by_y, *by_norm = through_norm(by_keys)
    return left(by_x), left(by_y), tuple(by_norm), by_weights


_stage.defvjp(_stage_forward, _stage_backward)


def _count(weights):
    """The number of blocks."""
    return len(jax.tree.leaves(weights)[0])


def _ends_shifted(count, shift):
    """Whether the last of `count` blocks leaves shifted tiles."""
    return shift and count % 2 == 0
