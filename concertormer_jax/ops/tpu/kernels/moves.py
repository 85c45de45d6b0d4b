"""Kernels that move features: from maps into tiles and back, and to where a block's tiles begin, with its norm."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.reference import NORM_EPSILON
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, Tiles, call


def enter(tiles: Tiles, maps: jax.Array) -> jax.Array:
    """A map [H, W, C] in tiles: [P, C, N]."""
    channels, dtype = maps.shape[2], maps.dtype
    in_word = words.per_word(dtype)
    in_part = LANES // tiles.columns  # rows of tiles in each 128 of them

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
    """The inverse of `enter`. If shifted, the first tile begins HALF pixels below and to the right of the corner."""
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
    """The channels in groups of at most 128, which fill the lanes once: of wider maps a stride cannot read pixels."""
    return [slice(start, min(start + LANES, channels)) for start in range(0, channels, LANES)]


def move_and_normalise(tiles: Tiles, x, scale, bias, was_shifted, shifted, keys=None, first=None):
    """Move the tiles of x, and return x and its layer norm over the channels, both [P, C, N].

    x: [P, C, N]; scale, bias: [C]; was_shifted, shifted: int32 [1], whether the first tile of x, and that of the
    results, begins HALF pixels below and to the right of the map's corner. Beyond a side the map goes on at the other.
    keys: features of the same shape, None for none; with them there is a third result, the keys of the block: `keys`
    where first (int32 [1]) is 1, else the layer norm.
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
    """Call write(pixel, lanes, features [C, 128]) with all features where they are moved to."""
    parts = tiles.parts
    step = shifted[0] - was_shifted[0]  # 1: right and down, -1: back, 0: not at all
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    column = jax.lax.rem(lane, jnp.int32(tiles.columns))
    from_next = jnp.where(step > 0, lane, LANES - 1 - lane) < tiles.columns
    from_other_side = (column + step < 0) | (column + step >= tiles.columns)

    def at(y, x_in_tile, down, right):
        """Move one pixel of all tiles. down, right: whether it comes to another tile along that axis."""
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
    """[C] to [C, 128], in float32."""
    return jnp.broadcast_to(values.astype(jnp.float32)[:, None], (len(values), LANES))


def _layer_norm(tile, scale, bias):
    """The layer norm of [C, 128] over the channels."""
    centred = tile.astype(jnp.float32)
    centred -= centred.mean(axis=0, keepdims=True)
    deviation = jnp.square(centred).mean(axis=0, keepdims=True)
    return (centred * jax.lax.rsqrt(deviation + NORM_EPSILON) * scale[...] + bias[...]).astype(tile.dtype)


def _position(number, step, crosses, size):
    """Where a pixel lies in its tile, along one axis, after the tiles have moved by `step` x HALF pixels.

    crosses: whether it is in another tile then; number: its number among the pixels that are, or that are not; size: of
    a tile along the axis. With the opposite step: where it lay before.
    """
    return number + jnp.where((step > 0) == crosses, size - HALF, 0)


def _turn(features, lanes):
    """Lane n of the result is lane n + lanes of the features, modulo 128. lanes: traced, of either sign."""
    return pltpu.roll(features, jnp.where(lanes > 0, LANES - lanes, -lanes), 1)
