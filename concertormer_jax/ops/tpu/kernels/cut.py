"""Between maps and features in tiles."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, Tiles, call


def enter(tiles: Tiles, maps: jax.Array) -> jax.Array:
    """[H, W, C] to [P, C, N]."""
    channels, dtype = maps.shape[2], maps.dtype
    in_word = words.per_word(dtype)
    in_part = LANES // tiles.columns  # rows of tiles

    def kernel(*refs):
        *maps, out = refs

        @pl.loop(0, tiles.height)
        def _(y):
            for word in range(BLOCK // in_word):
                for part in range(tiles.parts):
                    lanes = slice(part * LANES, (part + 1) * LANES)
                    rows = [(part * in_part + row) * tiles.height + y for row in range(in_part)]
                    for chosen, ref in zip(_chunks(channels), maps, strict=True):
                        pixels = [words.read_words(ref.at[r], word, tiles.columns, BLOCK // in_word) for r in rows]
                        for j, features in enumerate(words.unpack(jnp.concatenate(pixels, axis=0).T, dtype)):
                            out[y * BLOCK + word * in_word + j, chosen, lanes] = features.astype(dtype)

    given = [maps[:, :, chosen] for chosen in _chunks(channels)]
    return call(kernel, [((tiles.pixels, channels, tiles.count), dtype)], *given, name="enter_tiles")[0]


def leave(tiles: Tiles, features: jax.Array, shifted: bool) -> jax.Array:
    """The inverse of `enter`, of tiles that begin HALF pixels below and to the right of the map's corner if shifted."""
    channels, dtype = features.shape[1], features.dtype
    in_word = words.per_word(dtype)
    in_part = LANES // tiles.columns
    height = tiles.rows * tiles.height
    step = HALF if shifted else 0

    def kernel(features, *out):
        @pl.loop(0, tiles.height)
        def _(y):
            for word in range(BLOCK // in_word):
                beyond, start = divmod(word + step // in_word, BLOCK // in_word)
                for part in range(tiles.parts):
                    lanes = slice(part * LANES, (part + 1) * LANES)
                    positions = [y * BLOCK + word * in_word + j for j in range(in_word)]
                    for chosen, ref in zip(_chunks(channels), out, strict=True):
                        values = [features[p, chosen, lanes].astype(jnp.float32) for p in positions]
                        turned = words.pack(values, dtype).T
                        for row in range(in_part):
                            found = turned[row * tiles.columns : (row + 1) * tiles.columns]
                            found = pltpu.roll(found, 1, 0) if beyond else found
                            at = jax.lax.rem((part * in_part + row) * tiles.height + y + step, jnp.int32(height))
                            words.write_words(ref.at[at], start, BLOCK // in_word, found)

    size = height, tiles.columns * BLOCK
    wanted = [((*size, chosen.stop - chosen.start), dtype) for chosen in _chunks(channels)]
    return jnp.concatenate(call(kernel, wanted, features, name="leave_tiles"), axis=-1)


def _chunks(channels: int) -> list[slice]:
    """Channels that lie on the lanes at once: of a map with more, not every k-th pixel can be read."""
    return [slice(start, min(start + LANES, channels)) for start in range(0, channels, LANES)]
