"""The gated-dconv MLP with the simplified channel attention in it, on features in tiles, and its derivatives."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.reference import MLPWeights
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, ROWS, Tiles, call, dot, roll


def gated_mlp(tiles: Tiles, x, features, ripieno, concertino, sums, shifted, mlp, sca_kernel, sca_bias):
    """x + ((sca(attended) to_hidden + depthwise3x3(u)) * z) to_output, with u and z projected from `features`.

    x, features: [P, C, N]; ripieno, concertino: [P, h / 2, N], the two halves of the attended channels; sums: [h, 128],
    which add up over the lanes to the sums of the attended channels over all pixels; shifted: int32 [1], whether the
    first tile begins HALF pixels below and to the right of the map's corner. Returns [P, C, N].
    """
    width, hidden = x.shape[1], mlp.to_output.shape[0]
    dtype, wide = x.dtype, jnp.float32

    def kernel(shifted, x, features, ripieno, concertino, sums, to_uz, taps, to_hidden, to_output, sca, bias, *rest):
        out, u, mixed, from_features, from_attended, from_gated = rest
        from_features[...] = to_uz[...].T
        from_gated[...] = to_output[...].T
        mean = (sums[...].sum(axis=1, keepdims=True) / (tiles.pixels * tiles.count)).astype(dtype)
        scale = dot(sca[...], jnp.broadcast_to(mean, (hidden, LANES)), (0, 0))[:, :1] + bias[...]
        from_attended[...] = (to_hidden[...].astype(wide) * scale).T.astype(dtype)

        _project(tiles, from_features, features, u)
        _for_channels(hidden, lambda channels: _depthwise(tiles, u, mixed, taps, range(9), channels, shifted))

        @pl.loop(0, tiles.pixels)
        def _(p):
            for together, lanes in tiles.chunks:
                attended = jnp.concatenate([ripieno[p, :, lanes], concertino[p, :, lanes]], axis=0)
                inner = dot(from_attended[...], attended) + jnp.concatenate([mixed[p, t] for t in together], axis=1)
                gated = (inner * dot(from_features[hidden:], features[p, :, lanes])).astype(dtype)
                out[p, :, lanes] = (x[p, :, lanes].astype(wide) + dot(from_gated[...], gated)).astype(dtype)

    maps = ((tiles.pixels, tiles.parts, hidden, LANES), wide)
    scratch = [maps, maps, *((shape, dtype) for shape in ((2 * hidden, width), (hidden, hidden), (width, hidden)))]
    weights = (mlp.to_uz, _lane_taps(mlp.depthwise), mlp.to_hidden, mlp.to_output)
    weights += (sca_kernel.astype(dtype), sca_bias[:, None])
    inputs = (x, features, ripieno, concertino, sums, *weights)
    return call(kernel, [(x.shape, dtype)], *inputs, scalars=(shifted,), scratch=scratch, name="gated_mlp")[0]


def gated_mlp_backward(tiles: Tiles, features, ripieno, concertino, gradient, shifted, mlp: MLPWeights):
    """The derivatives of ((attended to_hidden + depthwise3x3(u)) * z) to_output, with u and z from `features`.

    features, gradient: [P, C, N]; ripieno, concertino, shifted: as in `gated_mlp`; mlp: in the type of the features,
    with the gates of the simplified channel attention in `to_hidden`. Returns those by features, ripieno and
    concertino, and in float32 by the weights.
    """
    width, hidden = features.shape[1], mlp.to_output.shape[0]
    dtype, wide = features.dtype, jnp.float32
    half = hidden // 2

    def kernel(shifted, features, ripieno, concertino, gradient, to_uz, taps, to_hidden, to_output, *rest):
        by_features, by_ripieno, by_concertino, by_uz, by_taps, by_hidden, by_output, *scratch = rest
        u, mixed, from_features, from_attended = scratch
        from_features[...] = to_uz[...].T
        from_attended[...] = to_hidden[...].T
        for sums in (by_uz, by_taps, by_hidden, by_output):
            sums[...] = jnp.zeros(sums.shape, wide)

        _project(tiles, from_features, features, u)
        _for_channels(hidden, lambda channels: _depthwise(tiles, u, mixed, taps, range(9), channels, shifted))

        # Back through the products; `mixed` becomes the derivative by the result of the convolution.

        @pl.loop(0, tiles.pixels)
        def _(p):
            for together, lanes in tiles.chunks:
                own, given = features[p, :, lanes], gradient[p, :, lanes]
                attended = jnp.concatenate([ripieno[p, :, lanes], concertino[p, :, lanes]], axis=0)
                inner = dot(from_attended[...], attended) + jnp.concatenate([mixed[p, t] for t in together], axis=1)
                z = dot(from_features[hidden:], own)
                by_gated = dot(to_output[...], given)
                by_output[...] += dot((inner * z).astype(dtype), given, (1, 1))
                by_inner, by_z = by_gated * z, (by_gated * inner).astype(dtype)
                for n, t in enumerate(together):
                    mixed[p, t] = by_inner[:, n * LANES : (n + 1) * LANES]
                by_inner = by_inner.astype(dtype)
                by_hidden[...] += dot(attended, by_inner, (1, 1))
                by_uz[hidden:] += dot(by_z, own, (1, 1))
                by_features[p, :, lanes] = dot(to_uz[:, hidden:], by_z).astype(dtype)
                by_attended = dot(to_hidden[...], by_inner).astype(dtype)
                by_ripieno[p, :, lanes], by_concertino[p, :, lanes] = by_attended[:half], by_attended[half:]

        # Back through the convolution; `u` becomes the derivative by itself.

        def convolve_back(channels):
            @pl.loop(0, tiles.parts)
            def _(t):
                totals = [jnp.zeros((ROWS, LANES), wide)] * 9
                for position, nearby in _neighbourhoods(tiles, u, channels, t, shifted[0]):
                    given = mixed[position, t, channels]
                    totals = [total + given * value for total, value in zip(totals, nearby, strict=True)]
                for tap in range(9):
                    by_taps[tap, channels] += totals[tap]

            _depthwise(tiles, mixed, u, taps, range(8, -1, -1), channels, shifted)

        _for_channels(hidden, convolve_back)

        @pl.loop(0, tiles.pixels)
        def _(p):
            for together, lanes in tiles.chunks:
                by_u = jnp.concatenate([u[p, t] for t in together], axis=1).astype(dtype)
                by_uz[:hidden] += dot(by_u, features[p, :, lanes], (1, 1))
                total = by_features[p, :, lanes].astype(wide) + dot(to_uz[:, :hidden], by_u)
                by_features[p, :, lanes] = total.astype(dtype)

    maps = ((tiles.pixels, tiles.parts, hidden, LANES), wide)
    scratch = [maps, maps, ((2 * hidden, width), dtype), ((hidden, hidden), dtype)]
    outputs = [(array.shape, dtype) for array in (features, ripieno, concertino)]
    outputs += [((2 * hidden, width), wide), ((9, hidden, LANES), wide), ((hidden, hidden), wide)]
    outputs += [((hidden, width), wide)]
    weights = (mlp.to_uz, _lane_taps(mlp.depthwise), mlp.to_hidden, mlp.to_output)
    inputs = (features, ripieno, concertino, gradient, *weights)
    results = call(kernel, outputs, *inputs, scalars=(shifted,), scratch=scratch, name="gated_mlp_backward")
    *by_maps, by_uz, by_taps, by_hidden, by_output = results
    by_taps = by_taps.sum(axis=-1).reshape(mlp.depthwise.shape)
    return *by_maps, MLPWeights(by_uz.T, by_taps, by_hidden, by_output)


def _lane_taps(kernel: jax.Array) -> jax.Array:
    """[3, 3, h] to [9, h, 128], in float32."""
    channels = kernel.shape[-1]
    return jnp.broadcast_to(kernel.reshape(9, channels, 1), (9, channels, LANES)).astype(jnp.float32)


def _project(tiles: Tiles, to_uz, features, u):
    """Write u [P, N / 128, h, 128] of the features [P, C, N]. to_uz: [2 h, C], u first."""
    hidden = u.shape[2]

    @pl.loop(0, tiles.pixels)
    def _(p):
        for t in range(tiles.parts):
            u[p, t] = dot(to_uz[:hidden], features[p, :, t * LANES : (t + 1) * LANES])


def _for_channels(hidden: int, function: Callable[[Any], None]):
    """Call function(channels) for eight of the hidden channels after another."""

    @pl.loop(0, hidden // ROWS)
    def _(chunk):
        function(pl.ds(pl.multiple_of(chunk * ROWS, ROWS), ROWS))


def _depthwise(tiles: Tiles, source, target, taps, order: Sequence[int], channels, shifted):
    """Write the depthwise 3x3 convolution of eight channels of `source`, zero outside the map, to `target`.

    source, target: [P, N / 128, h, 128]; taps: [9, h, 128], taken in this order: backwards for the derivative.
    """

    @pl.loop(0, tiles.parts)
    def _(t):
        own = [taps[tap, channels] for tap in order]
        for position, nearby in _neighbourhoods(tiles, source, channels, t, shifted[0]):
            rows = [sum(nearby[tap] * own[tap] for tap in range(row, row + 3)) for row in (0, 3, 6)]
            target[position, t, channels] = sum(rows)


def _neighbourhoods(tiles: Tiles, u, channels, part, shifted) -> Iterator[tuple[int, list[jax.Array]]]:
    """Yield each pixel of the tiles, and `u` [8, 128] in the nine around it, zero outside the map.

    u: [P, N / 128, h, 128]; channels: eight of them; part: which 128 tiles.
    """
    parts = tiles.parts
    lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
    row = jax.lax.div(lane + part * LANES, jnp.int32(tiles.columns))
    column = jax.lax.rem(lane, jnp.int32(tiles.columns))
    shifted = shifted.astype(jnp.float32)

    def load(y, x, t=part):
        return u[y * BLOCK + x, t, channels]

    def above(x):
        """The last row of the tiles above."""
        end = tiles.height - 1
        other = load(end, x, jax.lax.rem(part + parts - 1, parts))
        return roll(jnp.where(lane >= LANES - tiles.columns, other, load(end, x)), tiles.columns)

    def below(x):
        """The first row of the tiles below."""
        found = jnp.where(lane < tiles.columns, load(0, x, jax.lax.rem(part + 1, parts)), load(0, x))
        return roll(found, -tiles.columns)

    def left_of(first):
        return jnp.where(column == 0, roll(first, 1 - tiles.columns), roll(first, 1))

    def right_of(last):
        return jnp.where(column == tiles.columns - 1, roll(last, tiles.columns - 1), roll(last, -1))

    def joined(position, size, place, count):
        """1 where the pixel at this position of a tile and the one before it are neighbours in the map, else 0.

        place: of the tile among `count` along the axis; size: of the tile along it.
        """
        begins = jnp.where(place == 0, shifted, 1.0) if position == 0 else 1.0
        return jnp.where(place == count - 1, 1 - shifted, 1.0) * begins if position == HALF % size else begins

    def masked(values, mask):
        return [value * mask for value in values]

    def seen(position, size, before, here, after, place, count, edge):
        """What lies before and at a position and after it, zero outside the map. edge: multiplies by a mask."""
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
