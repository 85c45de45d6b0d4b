"""The Concertino: attention across blocks, between channels at each position, and between positions in each channel.

(Paper, section 3.) A row of logits holds those of several queries: of channels c, c + 8, c + 16, each with its keys on
32 lanes, or of positions p and p + 32, each with 64 keys.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, LANES, ROWS, Tiles, call, dot, inverse_norm, roll

POSITIONS = BLOCK * BLOCK
SLOT = 32  # lanes of a channel's logits


def concertino(tiles: Tiles, x, y, to_q, to_kv, channel_cdc, spatial_cdc, heads, bounded):
    """The attended channels [P, 2 G, N] of `concertino_channel` and `concertino_spatial`, and sums of them [2 G, 128].

    x, y, to_q, to_kv: as for `ripieno.ripieno`, the Concertino being groups 2 and 3. channel_cdc: [m 64, m 64]
    (out: head, position; in: likewise), spatial_cdc: [G, G] (out: head, channel; in: likewise), both with the
    temperatures in them. bounded: int32 [2], of each group, whether the exponentials of its logits stay finite without
    subtracting a maximum. The sums add up over the lanes to the sums over all pixels.
    """
    group = to_q.shape[1] // 4
    per_head = group // heads
    parts, chunks = tiles.parts, tiles.chunks
    dtype, wide = x.dtype, jnp.float32
    in_word = words.per_word(dtype)
    words_of_tile = tiles.pixels // in_word
    stride_in = words.stride_to_read(3 * group)
    stride_positions = words.stride_to_write(heads * POSITIONS)
    stride_channels = words.stride_to_write(group)
    same = y is x

    def kernel(*refs):
        bounded, x, *refs = refs
        y, to_q, to_kv, channel_cdc, spatial_cdc, out, sums, *scratch = (x, *refs) if same else refs
        query_weights, key_weights, qkv, values, channel_maps, spatial_maps, attended, largest = scratch
        query_weights[...] = to_q[...].T[2 * group :]
        both = to_kv[...].T
        key_weights[...] = jnp.concatenate([both[2 * group : 4 * group], both[6 * group :]], axis=0)
        sums[...] = jnp.zeros(sums.shape, wide)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        row = jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)

        # Where tiles are halves of blocks, a row of upper ones and a row of lower ones take turns on the lanes.
        tile_row = jax.lax.div(lane, jnp.int32(tiles.columns))
        halves = [jax.lax.rem(tile_row, jnp.int32(tiles.fold)) == f for f in range(tiles.fold)]

        def of_half(features, f):
            """The features where the tiles are the upper (f = 0) or lower halves, zeros elsewhere."""
            return features if tiles.fold == 1 else jnp.where(halves[f], features, jnp.zeros_like(features))

        def sum_over_lanes(squares, f):
            """The sum over the lanes, on every lane; by the matrix units, as adding across lanes is slow."""
            ones = jnp.ones((LANES, LANES), dtype)
            return dot(of_half(squares, f).astype(dtype), ones)

        def sum_along_lanes(squares, f):
            """The sums of all rows over the lanes, side by side: [1, R]."""
            return dot(jnp.ones((2 * ROWS, LANES), dtype), of_half(squares, f).astype(dtype), (1, 1))[:1]

        in_slot = [(lane >= slot * SLOT) & (lane < slot * SLOT + per_head) for slot in range(per_head // ROWS)]

        # Projections, and the logits between channels.

        @pl.loop(0, words_of_tile)
        def _(i):
            logits = [[jnp.zeros((group, group), wide)] * tiles.fold for _ in range(in_word)]
            squares = [[0, 0] for _ in range(in_word)]
            for together, lanes in chunks:
                spatial = []
                for j in range(in_word):
                    p = i * in_word + j
                    queries = dot(query_weights[...], x[p, :, lanes])
                    keys = dot(key_weights[...], y[p, :, lanes])
                    q, k = queries[:group], keys[:group]
                    values[p, :, lanes] = keys[2 * group : 3 * group].astype(dtype)
                    spatial.append([queries[group:], keys[group : 2 * group], keys[3 * group :]])
                    for n, part in enumerate((q, k)):
                        squares[j][n] += _over_parts(jnp.square(part))
                    for f in range(tiles.fold):
                        logits[j][f] += dot(of_half(q.astype(dtype), f), k.astype(dtype), (1, 1))
                for n in range(3):
                    packed = words.pack([features[n] for features in spatial], dtype)
                    at = pl.ds(i * stride_in + n * group, group)
                    for t in together:
                        qkv[t, at] = packed[:, (t - together[0]) * LANES : (t - together[0] + 1) * LANES]
            for j in range(in_word):
                for f in range(tiles.fold):
                    q2, k2 = squares[j]
                    scale = inverse_norm(sum_over_lanes(q2, f)[:, :group]) * inverse_norm(sum_along_lanes(k2, f))
                    scaled = jnp.pad(logits[j][f] * scale, ((0, 0), (0, LANES - group)))
                    position = f * tiles.pixels + i * in_word + j
                    for head in range(heads):
                        own = scaled[head * per_head : (head + 1) * per_head]
                        moved = [
                            roll(own[slot * ROWS : (slot + 1) * ROWS], slot * SLOT - head * per_head)
                            for slot in range(per_head // ROWS)
                        ]
                        apart = (jnp.where(*part, 0.0) for part in zip(in_slot, moved, strict=True))
                        side_by_side = reduce(jnp.add, apart)
                        words.write(channel_maps, head * POSITIONS + position, stride_positions, side_by_side)

        # Logits between positions.

        def of_channel(c, n):
            """The words of a channel's queries, keys or values (n = 0, 1, 2): [words of a block, N].

            Where tiles are halves of blocks, they lie on the lanes of the upper ones.
            """
            found = [words.read(qkv.at[t], c + n * group, words_of_tile, stride_in) for t in range(parts)]
            if tiles.fold == 2:
                found = [jnp.concatenate([found[0], roll(found[0], -tiles.columns)], axis=0)]
            return jnp.concatenate(found, axis=1)

        def write_spatial(c):
            q, k = (of_half(words.rows(of_channel(c, n), dtype), 0) for n in range(2))
            q2, k2 = (_over_parts(jnp.square(part.astype(wide))) for part in (q, k))
            scale = inverse_norm(sum_over_lanes(q2, 0)[:, :POSITIONS]) * inverse_norm(sum_along_lanes(k2, 0))
            maps = jnp.pad(dot(q, k, (1, 1)) * scale, ((0, 0), (0, LANES - POSITIONS)))
            upper, lower = jnp.split(maps, 2, axis=0)
            words.write(spatial_maps, c, stride_channels, jnp.where(lane < POSITIONS, upper, roll(lower, POSITIONS)))

        _unrolled(group, max(1, 8 // parts), write_spatial)

        # Communication and softmax.

        def softmax(maps, count, size, stride, cdc, bounded, slots):
            """Replace maps by their softmax after communication.

            Row i of all `size` maps begins at i x stride, for i < count. slots: (mask [1, 128], first lane, lanes) of
            each softmax in a row. Unless bounded, the largest logit of each is subtracted.
            """
            ones = sum((mask & (row >= start) & (row < start + width)).astype(wide) for mask, start, width in slots)
            used = reduce(jnp.logical_or, (mask for mask, _, _ in slots))

            def rows(i):
                return pl.ds(i * stride, size)

            def logits(i):
                return dot(cdc[...], maps[rows(i)].astype(dtype))

            @pl.loop(0, jnp.where(bounded, 0, count))
            def _(i):
                found = logits(i)
                maxima = jnp.zeros_like(found)
                for mask, _, _ in slots:
                    own = jnp.where(mask, found, -jnp.inf).max(axis=1, keepdims=True)
                    maxima = jnp.where(mask, own, maxima)
                largest[rows(i)] = maxima

            @pl.loop(0, count // 2)
            def _(n):
                for i in (2 * n, 2 * n + 1):
                    shift = jnp.where(bounded, 0.0, largest[rows(i)])
                    weights = jnp.where(used, jnp.exp(logits(i) - shift), 0.0)
                    total = dot(weights.astype(dtype), ones.astype(dtype))
                    maps[rows(i)] = weights / jnp.maximum(total, 1e-30)  # lanes outside of the slots have no sum

        channel_slots = [(mask, slot * SLOT, per_head) for slot, mask in enumerate(in_slot)]
        spatial_slots = [(lane < POSITIONS, 0, POSITIONS), (lane >= POSITIONS, POSITIONS, POSITIONS)]
        softmax(channel_maps, ROWS, heads * POSITIONS, stride_positions, channel_cdc, bounded[0] != 0, channel_slots)
        softmax(spatial_maps, POSITIONS // 2, group, stride_channels, spatial_cdc, bounded[1] != 0, spatial_slots)

        # Products with the values.

        def channel_weights(position):
            """The weights between channels at a position: [G, G], with those of each head on the diagonal."""
            found = []
            for head in range(heads):
                own = words.read(channel_maps, head * POSITIONS + position, ROWS, stride_positions)
                place = (lane >= head * per_head) & (lane < (head + 1) * per_head)
                moved = [roll(own, head * per_head - slot * SLOT) for slot in range(per_head // ROWS)]
                found += [jnp.where(place, part, 0.0) for part in moved]
            return jnp.concatenate(found, axis=0)[:, :group].astype(dtype)

        def attend_to_channels(p):
            weights = [channel_weights(f * tiles.pixels + p) for f in range(tiles.fold)]
            for _, lanes in chunks:
                products = (dot(own, of_half(values[p, :, lanes], f)) for f, own in enumerate(weights))
                result = reduce(jnp.add, products)
                out[p, :group, lanes] = result.astype(dtype)
                sums[:group] += _over_parts(result)

        _unrolled(tiles.pixels, 4, attend_to_channels)

        def attend_to_positions(c):
            upper = words.from_rows(words.read(spatial_maps, c, POSITIONS // 2, stride_channels).astype(dtype))
            weights = words.rows(jnp.concatenate([upper, roll(upper, POSITIONS)], axis=0), dtype)[:, :POSITIONS]
            result = words.from_rows(dot(weights, words.rows(of_channel(c, 2), dtype)).astype(dtype))
            if tiles.fold == 2:
                upper, lower = jnp.split(result, 2, axis=0)
                result = jnp.where(halves[0], upper, roll(lower, tiles.columns))
            for t in range(parts):
                words.write(attended.at[t], c, stride_channels, result[:, t * LANES : (t + 1) * LANES])

        _unrolled(group, max(1, 8 // parts), attend_to_positions)

        @pl.loop(0, words_of_tile)
        def _(i):
            for t in range(parts):
                found = words.unpack(attended[t, pl.ds(i * stride_channels, group)], dtype)
                for j, result in enumerate(found):
                    out[i * in_word + j, group:, t * LANES : (t + 1) * LANES] = result.astype(dtype)
                sums[group:] += sum(found)

    maps = [(ROWS * stride_positions + 8, LANES), (POSITIONS // 2 * stride_channels + 8, LANES)]
    scratch = [
        ((2 * group, x.shape[1]), dtype),
        ((4 * group, x.shape[1]), dtype),
        ((parts, words_of_tile * stride_in, LANES), jnp.int32),
        ((tiles.pixels, group, tiles.count), dtype),
        *((shape, wide) for shape in maps),
        ((parts, words_of_tile * stride_channels + 8, LANES), jnp.int32),
        (max(maps), wide),
    ]
    outputs = [((tiles.pixels, 2 * group, tiles.count), dtype), ((2 * group, LANES), wide)]
    weights = (to_q, to_kv, channel_cdc.astype(dtype), spatial_cdc.astype(dtype))
    features = (x,) if same else (x, y)
    return call(kernel, outputs, *features, *weights, scalars=(bounded,), scratch=scratch, name="concertino")


def _unrolled(count, times, function):
    """Call function(i) for i < count, `times` of them in a turn, so that products do not wait for one another."""

    @pl.loop(0, count // times)
    def _(n):
        for i in range(times):
            function(n * times + i)


def _over_parts(features):
    """The sum [R, 128] of the features [R, N] over parts of 128 lanes."""
    return sum(features[:, start : start + LANES] for start in range(0, features.shape[1], LANES))
