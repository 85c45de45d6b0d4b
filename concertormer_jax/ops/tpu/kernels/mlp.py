"""The gated-dconv MLP with the simplified channel attention in it, on features in tiles."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels.tiles import AT_ONCE, BLOCK, HALF, LANES, ROWS, Tiles, call, dot, roll


def gated_mlp(tiles: Tiles, x, features, ripieno, concertino, sums, shifted, mlp, sca_kernel, sca_bias):
    """x + (((sca(attended) to_hidden + depthwise3x3(u)) * z) to_output, u and z being projections of `features`.

    x: [P, C, N], `features` likewise; ripieno, concertino: [P, h / 2, N], the two halves of the attended channels;
    sums: [h, 128], whose sum over the lanes is that of the attended over all pixels. shifted: int32 [1], whether the
    first tile begins HALF pixels below and to the right of the map's corner. Returns [P, C, N].
    """
    width, hidden = x.shape[1], mlp.to_output.shape[0]
    parts = tiles.parts
    dtype = x.dtype
    wide = jnp.float32

    def kernel(shifted, x, features, ripieno, concertino, sums, to_uz, taps, to_hidden, to_output, sca, bias, *rest):
        out, u, mixed, from_features, from_attended, from_gated = rest
        from_features[...] = to_uz[...].T
        from_gated[...] = to_output[...].T
        mean = (sums[...].sum(axis=1, keepdims=True) / (tiles.pixels * tiles.count)).astype(dtype)
        scale = dot(sca[...], jnp.broadcast_to(mean, (hidden, LANES)), (0, 0))[:, :1] + bias[...]
        from_attended[...] = (to_hidden[...].astype(wide) * scale).T.astype(dtype)

        @pl.loop(0, tiles.pixels)
        def _(p):
            for t in range(parts):
                u[p, t] = dot(from_features[:hidden], features[p, :, t * LANES : (t + 1) * LANES])

        @pl.loop(0, hidden // ROWS)
        def _(chunk):
            channels = pl.ds(pl.multiple_of(chunk * ROWS, ROWS), ROWS)

            @pl.loop(0, parts)
            def _(t):
                depthwise(tiles, u, mixed, [taps[tap, channels] for tap in range(9)], channels, t, shifted[0])

        @pl.loop(0, tiles.pixels)
        def _(p):
            for first in range(0, parts, AT_ONCE):
                together = range(first, min(first + AT_ONCE, parts))
                lanes = slice(first * LANES, (together[-1] + 1) * LANES)
                attended = jnp.concatenate([ripieno[p, :, lanes], concertino[p, :, lanes]], axis=0)
                inner = dot(from_attended[...], attended) + jnp.concatenate([mixed[p, t] for t in together], axis=1)
                gated = (inner * dot(from_features[hidden:], features[p, :, lanes])).astype(dtype)
                out[p, :, lanes] = (x[p, :, lanes].astype(wide) + dot(from_gated[...], gated)).astype(dtype)

    maps = ((tiles.pixels, parts, hidden, LANES), wide)
    scratch = [maps, maps, *(((shape), dtype) for shape in ((2 * hidden, width), (hidden, hidden), (width, hidden)))]
    weights = (mlp.to_uz, lane_taps(mlp.depthwise), mlp.to_hidden, mlp.to_output)
    weights += (sca_kernel.astype(dtype), sca_bias[:, None])
    inputs = (x, features, ripieno, concertino, sums, *weights)
    return call(kernel, [(x.shape, dtype)], *inputs, scalars=(shifted,), scratch=scratch, name="gated_mlp")[0]


def lane_taps(kernel: jax.Array) -> jax.Array:
    """[3, 3, h] to [9, h, 128], as float32."""
    channels = kernel.shape[-1]
    return jnp.broadcast_to(kernel.reshape(9, channels, 1), (9, channels, LANES)).astype(jnp.float32)


def depthwise(tiles: Tiles, u, mixed, taps, channels, part, shifted):
    """Write to `mixed` the depthwise 3x3 convolution of `u`, zero outside the map, for 8 channels of 128 tiles.

    u, mixed: [P, N / 128, h, 128]; taps: nine of [8, 128]; part: which 128 tiles.
    """
    for position, nearby in neighbourhoods(tiles, u, channels, part, shifted):
        rows = [sum(nearby[tap] * taps[tap] for tap in range(row, row + 3)) for row in (0, 3, 6)]
        mixed[position, part, channels] = sum(rows)


def neighbourhoods(tiles: Tiles, u, channels, part, shifted) -> Iterator[tuple[int, list[jax.Array]]]:
    """Yield each pixel of the tiles, and `u` [8, 128] in the nine around it, zero outside the map.

    Arguments as in `depthwise`.
    """
    parts = tiles.parts
    lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
    row = jax.lax.div(lane + part * LANES, jnp.int32(tiles.columns))
    column = jax.lax.rem(lane, jnp.int32(tiles.columns))
    shifted = shifted.astype(jnp.float32)

    def load(y, x, t=part):
        return u[y * BLOCK + x, t, channels]

    def above(x):  # what the tiles above end with
        end = tiles.height - 1
        other = load(end, x, jax.lax.rem(part + parts - 1, parts))
        return roll(jnp.where(lane >= LANES - tiles.columns, other, load(end, x)), tiles.columns)

    def below(x):
        return roll(
            jnp.where(lane < tiles.columns, load(0, x, jax.lax.rem(part + 1, parts)), load(0, x)), -tiles.columns
        )

    def left_of(first):
        return jnp.where(column == 0, roll(first, 1 - tiles.columns), roll(first, 1))

    def right_of(last):
        return jnp.where(column == tiles.columns - 1, roll(last, tiles.columns - 1), roll(last, -1))

    def joined(position, size, place, count):
        """1 where the pixel at this position of a tile and the one before it are neighbours in the map, else 0."""
        begins = jnp.where(place == 0, shifted, 1.0) if position == 0 else 1.0
        return jnp.where(place == count - 1, 1 - shifted, 1.0) * begins if position == HALF % size else begins

    def masked(values, mask):
        return [value * mask for value in values]

    def seen(position, size, before, here, after, place, count, edge):
        """What lies before and after a position, zero outside the map."""
        if position in (0, HALF % size):
            before = edge(before, joined(position, size, place, count))
        if position + 1 == size:
            after = edge(after, joined(0, size, jnp.where(place == count - 1, 0, place + 1), count))
        elif position + 1 == HALF % size:
            after = edge(after, joined(position + 1, size, place, count))
        return before, here, after

    rows = [[load(y, x) for x in range(BLOCK)] for y in range(tiles.height)]
    rows = [[above(x) for x in range(BLOCK)], *rows, [below(x) for x in range(BLOCK)]]
    rows = [[left_of(values[-1]), *values, right_of(values[0])] for values in rows]
    for y in range(tiles.height):
        nearby = seen(y, tiles.height, *rows[y : y + 3], row, tiles.rows, masked)
        for x in range(BLOCK):
            found = [seen(x, BLOCK, *values[x : x + 3], column, tiles.columns, jnp.multiply) for values in nearby]
            yield y * BLOCK + x, [value for three in found for value in three]
