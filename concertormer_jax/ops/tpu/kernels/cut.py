"""Between maps and features in tiles."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.reference import shift
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, Tiles, call


def enter(tiles: Tiles, maps: jax.Array) -> jax.Array:
    """[b, H, W, C] to [b, P, C, N]."""
    cut = maps.reshape(len(maps), tiles.rows, tiles.height, tiles.columns, BLOCK, -1)
    return cut.transpose(0, 2, 4, 5, 1, 3).reshape(len(maps), tiles.pixels, -1, tiles.count)


def leave(tiles: Tiles, features: jax.Array, shifted: bool) -> jax.Array:
    """The inverse of `enter`, of tiles that begin HALF pixels below and to the right of the map's corner if shifted."""
    cut = features.reshape(len(features), tiles.height, BLOCK, -1, tiles.rows, tiles.columns)
    height, width = tiles.rows * tiles.height, tiles.columns * BLOCK
    maps = cut.transpose(0, 4, 1, 5, 2, 3).reshape(len(features), height, width, -1)
    return shift(maps, HALF) if shifted else maps


# As kernels, of one map with channels that lie on the lanes at once.


def enter_kernel(tiles: Tiles, maps: jax.Array) -> jax.Array:
    """`enter` of [H, W, C], to [P, C, N]."""
    height, width, channels = maps.shape
    dtype = maps.dtype
    in_word = words.per_word(dtype)
    rows_of_part = LANES // tiles.columns

    def kernel(maps, out):
        @pl.loop(0, tiles.height)
        def _(y):
            for word in range(BLOCK // in_word):
                for part in range(tiles.count // LANES):
                    rows = [(part * rows_of_part + row) * tiles.height + y for row in range(rows_of_part)]
                    found = [words.read_words(maps.at[row], word, tiles.columns, BLOCK // in_word) for row in rows]
                    for j, features in enumerate(words.unpack(jnp.concatenate(found, axis=0).T, dtype)):
                        lanes = slice(part * LANES, (part + 1) * LANES)
                        out[y * BLOCK + word * in_word + j, :, lanes] = features.astype(dtype)

    shape = tiles.pixels, channels, tiles.count
    return call(kernel, [(shape, dtype)], maps, name="enter_tiles")[0]


def leave_kernel(tiles: Tiles, features: jax.Array, shifted: bool) -> jax.Array:
    """`leave` of [P, C, N], to [H, W, C]."""
    dtype = features.dtype
    in_word = words.per_word(dtype)
    rows_of_part = LANES // tiles.columns
    height = tiles.rows * tiles.height
    step = HALF if shifted else 0

    def kernel(features, out):
        @pl.loop(0, tiles.height)
        def _(y):
            for word in range(BLOCK // in_word):
                beyond, start = divmod(word + step // in_word, BLOCK // in_word)
                for part in range(tiles.count // LANES):
                    lanes = slice(part * LANES, (part + 1) * LANES)
                    positions = [y * BLOCK + word * in_word + j for j in range(in_word)]
                    values = [features[p, :, lanes].astype(jnp.float32) for p in positions]
                    turned = words.pack(values, dtype).T
                    for row in range(rows_of_part):
                        at = (part * rows_of_part + row) * tiles.height + y + step
                        found = turned[row * tiles.columns : (row + 1) * tiles.columns]
                        found = pltpu.roll(found, 1, 0) if beyond else found
                        words.write_words(out.at[jax.lax.rem(at, jnp.int32(height))], start, BLOCK // in_word, found)

    shape = height, tiles.columns * BLOCK, features.shape[1]
    return call(kernel, [(shape, dtype)], features, name="leave_tiles")[0]
