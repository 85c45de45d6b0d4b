"""The beginning of a block: features in tiles moved to where its blocks are, and their layer norm."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.reference import NORM_EPSILON
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, Tiles, call


def move_and_normalise(tiles: Tiles, x, scale, bias, was_shifted, shifted):
    """x and its layer norm over the channels, both [P, C, N], of a map whose first tile begins elsewhere.

    x: [P, C, N]; scale, bias: [C]; was_shifted, shifted: int32 [1], whether the first tile begins HALF pixels below
    and to the right of the map's corner, in x and in what is returned. The map goes on at its other side.
    """
    parts = tiles.count // LANES
    dtype, wide = x.dtype, jnp.float32

    def kernel(was_shifted, shifted, x, scale, bias, moved, features):
        move = shifted[0] - was_shifted[0]  # 1: right and down, -1: back, 0: not at all
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        column = jax.lax.rem(lane, jnp.int32(tiles.columns))
        from_next = jnp.where(move > 0, lane, LANES - 1 - lane) < tiles.columns
        from_other_side = (column + move < 0) | (column + move >= tiles.columns)

        def write(y, x_in_tile, down, right):
            """One of the positions whose pixels come from other tiles further down, further right, or neither."""
            target, source = (
                _position(y, step, down, tiles.height) * BLOCK + _position(x_in_tile, step, right, BLOCK)
                for step in (move, -move)
            )
            for t in range(parts):

                def load(part):
                    lanes = pl.ds(part * LANES if isinstance(part, int) else pl.multiple_of(part * LANES, LANES), LANES)
                    return words.from_rows(x[source, :, lanes])

                tile = load(t)
                if down:
                    other = load(jax.lax.rem(t + move + parts, jnp.int32(parts)))
                    tile = _turn(jnp.where(from_next, other, tile), move * tiles.columns)
                if right:
                    beyond = _turn(tile, move * (1 - tiles.columns))
                    tile = jnp.where(from_other_side, beyond, _turn(tile, move))
                tile = words.rows(tile, dtype)
                lanes = slice(t * LANES, (t + 1) * LANES)
                moved[target, :, lanes] = tile
                centred = tile.astype(wide)
                centred -= centred.mean(axis=0, keepdims=True)
                deviation = jnp.square(centred).mean(axis=0, keepdims=True)
                normal = centred * jax.lax.rsqrt(deviation + NORM_EPSILON) * scale[...] + bias[...]
                features[target, :, lanes] = normal.astype(dtype)

        for down, rows in ((False, tiles.height - HALF), (True, HALF)):
            for right in (False, True):

                @pl.loop(0, rows * HALF)
                def _(i, down=down, right=right):
                    write(jax.lax.div(i, HALF), jax.lax.rem(i, HALF), down, right)

    wanted = ((x.shape, dtype), (x.shape, dtype))
    columns = (jnp.broadcast_to(values.astype(wide)[:, None], (len(values), LANES)) for values in (scale, bias))
    return call(kernel, wanted, x, *columns, scalars=(was_shifted, shifted), name="move_and_normalise")


def _position(number, step, crosses, size):
    """Of the pixels moved by `step` HALVES along an axis, where those are in their tile that cross to another, or not.

    number: which of them, from 0; size: of a tile along the axis. Where they come from is where the opposite step ends.
    """
    return number + jnp.where((step > 0) == crosses, size - HALF, 0)


def _turn(features, lanes):
    """Lane n of the result is lane n + lanes, of 128, circularly."""
    return pltpu.roll(features, jnp.where(lanes > 0, LANES - lanes, -lanes), 1)
