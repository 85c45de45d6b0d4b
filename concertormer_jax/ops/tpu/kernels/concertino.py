"""The Concertino: attention across blocks, between the channels of each position and the positions of each channel."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, LANES, Tiles, call, dot, roll

POSITIONS = BLOCK * BLOCK
AT_ONCE = 4  # products that keep the four matrix units of a v5e busy
SMALLEST_SQUARED_NORM = 1e-24


def concertino(tiles: Tiles, x, y, to_q, to_kv, channel_cdc, spatial_cdc, heads):
    """The attended channels [P, 2 G, N] of `concertino_channel` and `concertino_spatial`, and sums [2 G, 128] of them.

    x, y: [P, C, N], normalised features that give the queries, and the keys and values; to_q: [C, 4 G], to_kv: [C, 8 G]
    as in AttentionWeights, the Concertino being its groups 2 and 3; channel_cdc: [m 64, m 64] (out: head, position;
    in: likewise), spatial_cdc: [G, G] (out: head, channel; in: likewise), both with the temperatures in them.
    The sum over the lanes of the sums is that over all pixels.
    """
    group = to_q.shape[1] // 4
    per_head = group // heads
    parts = tiles.count // LANES
    dtype = x.dtype
    count = words.per_word(dtype)
    wide = jnp.float32
    in_word = words.stride_to_read(3 * group)
    maps_of_position = words.stride_to_write(group)
    maps_of_channel = words.stride_to_write(heads * POSITIONS)
    same = y is x

    def kernel(*refs):
        x, y, to_q, to_kv, channel_cdc, spatial_cdc, out, sums, *scratch = (refs[0], *refs) if same else refs
        query_weights, key_weights, qkv, values, channel_maps, spatial_maps, attended = scratch
        query_weights[...] = to_q[...].T[2 * group :]
        both = to_kv[...].T
        key_weights[...] = jnp.concatenate([both[2 * group : 4 * group], both[6 * group :]], axis=0)
        sums[...] = jnp.zeros(sums.shape, wide)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        half = [jax.lax.rem(jax.lax.div(lane, jnp.int32(tiles.columns)), jnp.int32(tiles.fold)) == f for f in range(tiles.fold)]

        @pl.loop(0, tiles.pixels // count)
        def _(i):
            logits = [[0] * tiles.fold for _ in range(count)]
            norms = [[0, 0] for _ in range(count)]
            for first in range(0, parts, AT_ONCE):
                together = range(first, min(first + AT_ONCE, parts))
                lanes = slice(first * LANES, (together[-1] + 1) * LANES)
                spatial = []
                for j in range(count):
                    p = i * count + j
                    queries = dot(query_weights[...], x[p, :, lanes])
                    keys = dot(key_weights[...], y[p, :, lanes])
                    q, k, v = queries[:group], keys[:group], keys[2 * group : 3 * group]
                    values[p, :, lanes] = v.astype(dtype)
                    spatial.append([queries[group:], keys[group : 2 * group], keys[3 * group :]])
                    for n, part in enumerate((q, k)):
                        squares = jnp.square(part)
                        norms[j][n] += sum(squares[:, t * LANES : (t + 1) * LANES] for t in range(len(together)))
                    q, k = q.astype(dtype), k.astype(dtype)
                    for f in range(tiles.fold):
                        own = q if tiles.fold == 1 else jnp.where(half[f], q, jnp.zeros_like(q))
                        logits[j][f] += dot(own, k, (1, 1))
                for n in range(3):
                    packed = words.pack([s[n] for s in spatial], dtype)
                    for t in together:
                        qkv[t, pl.ds(i * in_word + n * group, group)] = packed[:, (t - first) * LANES : (t - first + 1) * LANES]
            for j in range(count):
                for f in range(tiles.fold):
                    q2, k2 = (n if tiles.fold == 1 else jnp.where(half[f], n, 0.0) for n in norms[j])
                    ones = jnp.ones((8, LANES), wide)
                    along_lanes = dot(ones, k2, (1, 1))[:1]
                    scale = _inverse(q2.sum(axis=1, keepdims=True)) * _inverse(along_lanes)
                    scaled = jnp.pad(logits[j][f] * scale, ((0, 0), (0, LANES - group)))
                    position = f * tiles.pixels + i * count + j
                    for head in range(heads):
                        own = roll(scaled[head * per_head : (head + 1) * per_head], -head * per_head)
                        words.write(channel_maps, head * POSITIONS + position, maps_of_channel, own)

        @pl.loop(0, per_head)
        def _(c):
            rows = pl.ds(c * maps_of_channel, heads * POSITIONS)
            mixed = dot(channel_cdc[...], channel_maps[rows].astype(dtype))
            channel_maps[rows] = _softmax(mixed, lane < per_head)

        @pl.loop(0, tiles.pixels)
        def _(p):
            weights = []
            for f in range(tiles.fold):
                position = f * tiles.pixels + p
                starts = [head * POSITIONS + position for head in range(heads)]
                maps = [words.read(channel_maps, start, per_head, maps_of_channel) for start in starts]
                maps = jnp.concatenate([roll(own, head * per_head) for head, own in enumerate(maps)], axis=0)
                weights.append(maps[:, :group].astype(dtype))
            for first in range(0, parts, AT_ONCE):
                together = range(first, min(first + AT_ONCE, parts))
                lanes = slice(first * LANES, (together[-1] + 1) * LANES)
                v = values[p, :, lanes]
                result = sum(
                    dot(own, v if tiles.fold == 1 else jnp.where(half[f], v, jnp.zeros_like(v)))
                    for f, own in enumerate(weights)
                )
                out[p, :group, lanes] = result.astype(dtype)
                sums[:group] += sum(result[:, t * LANES : (t + 1) * LANES] for t in range(len(together)))

        def of_channel(c, n):
            """[64, N] of queries, keys or values; of folded tiles where their upper halves are."""
            one = [words.read(qkv.at[t], c + n * group, tiles.pixels // count, in_word) for t in range(parts)]
            if tiles.fold == 2:
                one = [jnp.concatenate([one[0], roll(one[0], -tiles.columns)], axis=0)]
            return words.rows(jnp.concatenate(one, axis=1), dtype)

        @pl.loop(0, group)
        def _(c):
            q, k = of_channel(c, 0), of_channel(c, 1)
            if tiles.fold == 2:
                q, k = (jnp.where(half[0], part, jnp.zeros_like(part)) for part in (q, k))
            inverse = [_inverse(jnp.square(part.astype(wide)).sum(axis=1, keepdims=True)) for part in (q, k)]
            q, k = ((part.astype(wide) * scale).astype(dtype) for part, scale in zip((q, k), inverse, strict=True))
            maps = jnp.pad(dot(q, k, (1, 1)), ((0, 0), (0, LANES - POSITIONS)))
            words.write(spatial_maps, c, maps_of_position, maps)

        @pl.loop(0, POSITIONS)
        def _(p):
            rows = pl.ds(p * maps_of_position, group)
            mixed = dot(spatial_cdc[...], spatial_maps[rows].astype(dtype))
            spatial_maps[rows] = _softmax(mixed, lane < POSITIONS)

        @pl.loop(0, group)
        def _(c):
            weights = words.read(spatial_maps, c, POSITIONS, maps_of_position)[:, :POSITIONS].astype(dtype)
            result = words.from_rows(dot(weights, of_channel(c, 2)).astype(dtype))
            if tiles.fold == 2:
                upper, lower = jnp.split(result, 2, axis=0)
                result = jnp.where(half[0], upper, roll(lower, tiles.columns))
            for t in range(parts):
                words.write(attended.at[t], c, maps_of_position, result[:, t * LANES : (t + 1) * LANES])

        @pl.loop(0, tiles.pixels // count)
        def _(i):
            for t in range(parts):
                found = words.unpack(attended[t, pl.ds(i * maps_of_position, group)], dtype)
                for j, result in enumerate(found):
                    out[i * count + j, group:, t * LANES : (t + 1) * LANES] = result.astype(dtype)
                sums[group:] += sum(found)

    scratch = [
        ((2 * group, x.shape[1]), dtype),
        ((4 * group, x.shape[1]), dtype),
        ((parts, tiles.pixels // count * in_word, LANES), jnp.int32),
        ((tiles.pixels, group, tiles.count), dtype),
        ((per_head * maps_of_channel + 8, LANES), wide),
        ((POSITIONS * maps_of_position + 8, LANES), wide),
        ((parts, tiles.pixels // count * maps_of_position + 8, LANES), jnp.int32),
    ]
    outputs = [((tiles.pixels, 2 * group, tiles.count), dtype), ((2 * group, LANES), wide)]
    weights = (to_q, to_kv, channel_cdc.astype(dtype), spatial_cdc.astype(dtype))
    return call(kernel, outputs, *((x,) if same else (x, y)), *weights, scratch=scratch, name="concertino")


def _inverse(squared):
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


def _softmax(logits, used):
    """Over the lanes that are `used`; the others become 0."""
    logits = jnp.pad(logits, ((0, 0), (0, LANES - logits.shape[1])))
    largest = jnp.where(used, logits, -jnp.inf).max(axis=1, keepdims=True)
    weights = jnp.where(used, jnp.exp(logits - largest), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
