"""The beginning of a block: features in tiles moved to where its blocks are, and their layer norm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.reference import NORM_EPSILON
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, Tiles, call


class Flags(NamedTuple):
    """Of a block, each int32 [1]: whether its tiles are shifted, those it is given are, and it is its stage's first."""

    shifted: jax.Array
    was_shifted: jax.Array
    first: jax.Array


def flags_of(position, shift: bool) -> Flags:
    """Of block `position` of a stage, every other block of which is shifted if `shift`."""
    flags = shift & (position % 2 == 1), shift & (position % 2 == 0) & (position > 0), position == 0
    return Flags(*(jnp.asarray(flag, jnp.int32).reshape(1) for flag in flags))


def move_and_normalise(tiles: Tiles, x, scale, bias, was_shifted, shifted, keys=None, first=None):
    """x and its layer norm over the channels, both [P, C, N], of a map whose first tile begins elsewhere.

    x: [P, C, N]; scale, bias: [C]; was_shifted, shifted: int32 [1], whether the first tile begins HALF pixels below
    and to the right of the map's corner, in x and in what is returned. The map goes on at its other side.
    keys: features of the same shape, for a third result: these where first (int32 [1]) is 1, else the layer norm.
    """
    dtype = x.dtype
    chosen = () if keys is None else (keys,)

    def kernel(was_shifted, shifted, *refs):
        if chosen:
            first, x, scale, bias, keys, moved, features, used = refs
            from_keys = jnp.full((1, LANES), first[0]) == 1
        else:
            x, scale, bias, moved, features = refs

        def write(target, lanes, tile):
            moved[target, :, lanes] = tile
            normal = _layer_norm(tile, scale, bias)
            features[target, :, lanes] = normal
            if chosen:
                given, own = words.from_rows(keys[target, :, lanes]), words.from_rows(normal)
                used[target, :, lanes] = words.rows(jnp.where(from_keys, given, own), dtype)

        _for_each_moved(tiles, x, was_shifted, shifted, write)

    wanted = [(x.shape, dtype)] * (2 + len(chosen))
    scalars = (was_shifted, shifted, first) if chosen else (was_shifted, shifted)
    return call(kernel, wanted, x, _column(scale), _column(bias), *chosen, scalars=scalars, name="move_and_normalise")


def move(tiles: Tiles, x, was_shifted, shifted):
    """The first result of `move_and_normalise`."""

    def kernel(was_shifted, shifted, x, moved):
        def write(target, lanes, tile):
            moved[target, :, lanes] = tile

        _for_each_moved(tiles, x, was_shifted, shifted, write)

    return call(kernel, [(x.shape, x.dtype)], x, scalars=(was_shifted, shifted), name="move")[0]


def _for_each_moved(tiles, x, was_shifted, shifted, write):
    """write(pixel, lanes, features [C, 128]) of all moved features."""
    parts = tiles.parts
    step = shifted[0] - was_shifted[0]  # 1: right and down, -1: back, 0: not at all
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    column = jax.lax.rem(lane, jnp.int32(tiles.columns))
    from_next = jnp.where(step > 0, lane, LANES - 1 - lane) < tiles.columns
    from_other_side = (column + step < 0) | (column + step >= tiles.columns)

    def at(y, x_in_tile, down, right):
        """One of the positions whose pixels come from other tiles further down, further right, or neither."""
        target, source = (
            _position(y, way, down, tiles.height) * BLOCK + _position(x_in_tile, way, right, BLOCK)
            for way in (step, -step)
        )
        for t in range(parts):

            def load(part):
                lanes = pl.ds(part * LANES if isinstance(part, int) else pl.multiple_of(part * LANES, LANES), LANES)
                return words.from_rows(x[source, :, lanes])

            tile = load(t)
            if down:
                other = load(jax.lax.rem(t + step + parts, jnp.int32(parts)))
                tile = _turn(jnp.where(from_next, other, tile), step * tiles.columns)
            if right:
                beyond = _turn(tile, step * (1 - tiles.columns))
                tile = jnp.where(from_other_side, beyond, _turn(tile, step))
            write(target, slice(t * LANES, (t + 1) * LANES), words.rows(tile, x.dtype))

    for down, rows in ((False, tiles.height - HALF), (True, HALF)):
        for right in (False, True):

            @pl.loop(0, rows * HALF)
            def _(i, down=down, right=right):
                at(jax.lax.div(i, HALF), jax.lax.rem(i, HALF), down, right)


def normalise(tiles: Tiles, x, scale, bias):
    """The layer norm of x [P, C, N] over the channels; scale, bias: [C]."""

    def kernel(x, scale, bias, features):
        @pl.loop(0, tiles.pixels)
        def _(p):
            for start in range(0, tiles.count, LANES):
                lanes = slice(start, start + LANES)
                features[p, :, lanes] = _layer_norm(x[p, :, lanes], scale, bias)

    return call(kernel, [(x.shape, x.dtype)], x, _column(scale), _column(bias), name="normalise")[0]


def _column(values):
    """[C] to [C, 128], as float32."""
    return jnp.broadcast_to(values.astype(jnp.float32)[:, None], (len(values), LANES))


def _layer_norm(tile, scale, bias):
    """Of [C, 128]."""
    centred = tile.astype(jnp.float32)
    centred -= centred.mean(axis=0, keepdims=True)
    deviation = jnp.square(centred).mean(axis=0, keepdims=True)
    return (centred * jax.lax.rsqrt(deviation + NORM_EPSILON) * scale[...] + bias[...]).astype(tile.dtype)


def _position(number, step, crosses, size):
    """Of the pixels moved by `step` HALVES along an axis, where those are in their tile that cross to another, or not.

    number: which of them, from 0; size: of a tile along the axis. Where they come from is where the opposite step ends.
    """
    return number + jnp.where((step > 0) == crosses, size - HALF, 0)


def _turn(features, lanes):
    """Lane n of the result is lane n + lanes, of 128, circularly."""
    return pltpu.roll(features, jnp.where(lanes > 0, LANES - lanes, -lanes), 1)
