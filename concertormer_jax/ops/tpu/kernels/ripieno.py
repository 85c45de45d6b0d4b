"""The Ripieno: attention inside blocks, between their positions and between their channels.

Features lie in pairs: of two heads, or with a single head of two blocks, one in the upper and one in the lower half of
the map. The 64 positions of a pair are rows, and its channels are on the 128 lanes, in four slots of 32:

    0  member 0, spatial    1  member 0, channel    2  member 1, spatial    3  member 1, channel

In a spatial slot of the values the last eight are ones: what attends there are the sums of the weights.

Logits lie with two queries side by side: position p and p + 32, each with 64 keys, or channel c and c + 16, each with
the keys at their place in slot 1 or 3. Communication takes one row of all maps at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from concertormer_jax.ops.reference import MASK
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, LANES, Tiles, call, dot, roll

POSITIONS = BLOCK * BLOCK
SIDE = LANES // 2  # lanes of a member of a pair, and of a query's logits
SLOT = SIDE // 2  # lanes of a group's channels in it
SUMS = 8  # of them, at the end
ROWS = 8  # sublanes of a register
SPATIAL_ROWS, CHANNEL_ROWS = POSITIONS // 2, SLOT // 2  # rows of a map's logits, two of which lie side by side
LOGITS = SPATIAL_ROWS + CHANNEL_ROWS
AT_ONCE = 4  # products that keep the four matrix units of a v5e busy
UNITS = 8  # pairs whose products do not wait for one another
SMALLEST_SQUARED_NORM = 1e-24


class Bands(NamedTuple):
    """How communication takes the blocks: `rows` of them, in all heads at once, with `halo` rows around them."""

    rows: int
    halo: int

    def padded(self, blocks: tuple[int, int]) -> int:
        """Blocks of a head with the halos around them."""
        return (blocks[0] + 2 * self.halo) * blocks[1]


def bands_of(blocks: tuple[int, int], heads: int) -> Bands:
    """Of a map with so many rows and columns of blocks: as many rows as the matrix units take at once."""
    rows, columns = blocks
    if heads * rows * columns <= 2 * LANES:
        return Bands(rows, 0)
    fitting = [r for r in range(1, rows + 1) if rows % r == 0 and heads * (r + 2) * columns <= LANES]
    return Bands(max(fitting, default=1), 1)


def cdc_matrix(blocks: tuple[int, int], heads: int, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution of a band with `kernel` [3, 3, s, t] as a matrix [t rows columns, s (rows + halos) columns]."""
    bands, columns = bands_of(blocks, heads), blocks[1]
    taps = np.arange(3)[:, None, None]
    out, source = np.arange(bands.rows)[:, None], np.arange(bands.rows + 2 * bands.halo) - bands.halo
    down = (source - out == taps - 1).astype(np.float32)
    right = (np.arange(columns) - np.arange(columns)[:, None] == taps - 1).astype(np.float32)
    places = np.einsum("dyY,rxX->dryxYX", down, right).reshape(9, bands.rows * columns, -1)
    for_each_block = np.repeat(np.eye(heads, dtype=np.float32), places.shape[-1], axis=1)
    weights = jnp.einsum("drst,sb->drtb", kernel, for_each_block, precision="highest").reshape(9, heads, 1, -1)
    tiled = np.tile(places, heads)
    return sum(weights[tap] * tiled[tap] for tap in range(9)).reshape(-1, tiled.shape[-1])


def ripieno(tiles: Tiles, x, y, to_q, to_kv, spatial_cdc, channel_cdc, heads, shifted, bounded):
    """The attended channels [P, 2 G, N] of `ripieno_spatial` and `ripieno_channel`, and sums [2 G, 128] of them.

    x, y: [P, C, N], normalised features that give the queries, and the keys and values; to_q: [C, 4 G], to_kv: [C, 8 G]
    as in AttentionWeights, the Ripieno being its groups 0 and 1; spatial_cdc, channel_cdc: `cdc_matrix`, with the
    temperatures in it. shifted: int32 [1], whether the shift's mask applies; bounded: int32 [2], whether exponentials
    of the logits of the two groups stay finite without a maximum taken first. The sum over the lanes of the sums is
    that over all pixels.
    """
    group = to_q.shape[1] // 4
    per_head = group // heads
    parts = tiles.count // LANES
    blocks = tiles.rows // tiles.fold, tiles.columns
    count = blocks[0] * blocks[1]
    bands = bands_of(blocks, heads)
    pairs = max(1, heads // 2)
    units = count if heads > 1 else count // 2  # of a pair
    dtype, wide = x.dtype, jnp.float32
    in_word = words.per_word(dtype)
    same = y is x
    rows_of_word = tiles.count if heads > 1 else tiles.count // 2
    stride_in = words.stride_to_read(rows_of_word)
    stride_logits = words.stride_to_read(LOGITS)
    stride_weights = words.stride_to_read(heads * count)
    stride_out = words.stride_to_write(units)
    column_pairs = _across_border(blocks, heads)

    def kernel(*refs):
        shifted, bounded, x, *refs = refs
        y, to_q, to_kv, spatial_cdc, channel_cdc, mask, out, sums, *scratch = (x, *refs) if same else refs
        query_weights, other_weights, channel_weights, scales, qkv, logits, weights, largest, attended, staged = scratch
        query_weights[...] = to_q[...].T
        other_weights[...] = to_kv[...].T
        for kind, projection in enumerate((query_weights, other_weights)):
            channel_weights[kind] = projection[...].astype(wide)[group : 2 * group].astype(dtype)
        sums[...] = jnp.zeros(sums.shape, wide)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        first_side = lane < SIDE
        slot = jax.lax.div(lane, jnp.int32(SLOT))
        even = (slot & 1) == 0
        channel = ~even & ((lane & (SLOT - 1)) < per_head)
        sides = [first_side, ~first_side]

        # Project, normalise over channels or positions, and write the features of each block together.

        for kind, features in enumerate((x, y)):
            for start in range(0, parts, AT_ONCE):
                lanes = slice(start * LANES, min(start + AT_ONCE, parts) * LANES)

                def add(n, total, kind=kind, features=features, lanes=lanes):
                    positions = range(AT_ONCE)
                    found = [dot(channel_weights[kind], features[n * AT_ONCE + p, :, lanes]) for p in positions]
                    return total + sum(map(jnp.square, found))

                none = jnp.zeros((group, lanes.stop - lanes.start), wide)
                total = jax.lax.fori_loop(0, tiles.pixels // AT_ONCE, add, none)
                if tiles.fold == 2:
                    upper = jax.lax.rem(jax.lax.div(lane, jnp.int32(tiles.columns)), 2) == 0
                    total += jnp.where(upper, roll(total, -tiles.columns), roll(total, tiles.columns))
                scales[kind, :, lanes] = _inverse(total)

        def feature_rows(rows, pair, ones):
            """Of a projection [2 G, lanes of both members]: [128, 128] of the channels of a pair and 128 blocks."""
            found = []
            unused = [jnp.full((SLOT - per_head, LANES), float(filled), wide) for filled in (ones, False)]
            for member in range(2):
                head = 2 * pair + member if heads > 1 else 0
                lanes = slice(0, LANES) if heads > 1 else slice(member * LANES, (member + 1) * LANES)
                for start, rest in zip((head * per_head, group + head * per_head), unused, strict=True):
                    found += [rows[start : start + per_head, lanes], rest]
            return jnp.concatenate(found, axis=0)

        def normalised(rows, scale):
            parts = []
            for head in range(heads):
                own = rows[head * per_head : (head + 1) * per_head]
                parts.append(own * _inverse(jnp.square(own).sum(axis=0, keepdims=True)))
            return jnp.concatenate([*parts, rows[group:] * scale], axis=0)

        @pl.loop(0, tiles.pixels // in_word)
        def _(i):
            sources = [(x, query_weights, 0), (y, other_weights, 0), (y, other_weights, 4 * group)]
            pairs_of_parts = (
                [[t, t + parts // 2] for t in range(parts // 2)] if heads == 1 else [[t] for t in range(parts)]
            )
            for start in range(0, len(pairs_of_parts), AT_ONCE // len(pairs_of_parts[0])):
                chosen = pairs_of_parts[start : start + AT_ONCE // len(pairs_of_parts[0])]
                for kind, (features, projection, row) in enumerate(sources):
                    projected = []
                    for j in range(in_word):
                        lanes = [slice(t * LANES, (t + 1) * LANES) for both in chosen for t in both]
                        taken = jnp.concatenate([features[i * in_word + j, :, own] for own in lanes], axis=1)
                        rows = dot(projection[row : row + 2 * group], taken)
                        if kind < 2:
                            rows = normalised(rows, jnp.concatenate([scales[kind, :, own] for own in lanes], axis=1))
                        projected.append(rows)
                    for n, both in enumerate(chosen):
                        lanes = slice(n * len(both) * LANES, (n + 1) * len(both) * LANES)
                        for pair in range(pairs):
                            packed = words.pack(
                                [feature_rows(rows[:, lanes], pair, kind == 2) for rows in projected], dtype
                            )
                            at = pl.ds(i * stride_in + both[0] * LANES, LANES)
                            qkv[kind * pairs + pair, at] = packed.T

        def features_of(kind, pair, unit):
            """The words of a pair's features [64 / w, 128]."""
            row, column = jax.lax.div(unit, jnp.int32(tiles.columns)), jax.lax.rem(unit, jnp.int32(tiles.columns))
            starts = [(row * tiles.fold + f) * tiles.columns + column for f in range(tiles.fold)]
            found = [
                words.read(qkv.at[kind * pairs + pair], start, tiles.pixels // in_word, stride_in) for start in starts
            ]
            return jnp.concatenate(found, axis=0)

        def place(pair, member, unit):
            """The number of a map among those of all blocks and heads."""
            return unit + member * units if heads == 1 else (2 * pair + member) * count + unit

        def place_of_logits(pair, member, unit):
            head = 0 if heads == 1 else 2 * pair + member
            block = unit + member * units if heads == 1 else unit
            return (head * bands.padded(blocks) + bands.halo * tiles.columns + block) * stride_logits

        # Logits.

        if bands.halo:
            around = bands.padded(blocks) * stride_logits
            size = bands.halo * tiles.columns * stride_logits
            for head in range(heads):
                logits[pl.ds(head * around, size)] = jnp.zeros((size, LANES), wide)
                logits[pl.ds((head + 1) * around - size, size)] = jnp.zeros((size, LANES), wide)

        def side_by_side(upper, lower, member):
            """The lanes of a member in two parts of rows, those of the upper first."""
            return (
                jnp.where(first_side, upper, roll(lower, SIDE))
                if member == 0
                else jnp.where(first_side, roll(upper, SIDE), lower)
            )

        half = POSITIONS // in_word // 2

        def turn(pair, unit, ahead):
            """What the products of a pair's queries and keys need, which the cross-lane units prepare."""
            q, k = (features_of(kind, pair, unit) for kind in range(2))
            queries = jnp.where(even, q[:half], roll(q[half:], SLOT))
            k = words.rows(k, dtype)
            keys = words.from_rows(jnp.concatenate([k, k], axis=0).T)  # each channel's keys, twice
            ahead[...] = jnp.concatenate([queries, roll(queries, SIDE), keys], axis=0)

        def write_logits(pair, unit, ahead):
            keys = [ahead[2 * half + n * SLOT // in_word : 2 * half + (n + 1) * SLOT // in_word] for n in range(4)]
            turned = words.rows(jnp.concatenate(keys[1::2], axis=0), dtype)[:, :POSITIONS]
            channels = dot(turned, words.rows(features_of(0, pair, unit), dtype))
            for member in range(2):
                queries = words.rows(ahead[member * half : (member + 1) * half], dtype)[:, :SIDE]
                apart = jnp.concatenate([jnp.where(side, keys[2 * member], 0) for side in sides], axis=0)
                own = channels[member * SLOT : (member + 1) * SLOT]
                maps = [dot(queries, words.rows(apart, dtype)), side_by_side(*jnp.split(own, 2, axis=0), member)]
                place = pl.multiple_of(place_of_logits(pair, member, unit), ROWS)
                logits[pl.ds(place, LOGITS)] = jnp.concatenate(maps, axis=0)

        def for_each_pair(prepare, finish):
            """finish(pair, unit, ahead) for all, while prepare(pair, unit, ahead) fills `ahead` for those that follow."""
            last = units // UNITS - 1

            @pl.loop(0, units // UNITS + 1)
            def _(n):
                for step, function in ((jnp.maximum(n - 1, 0), finish), (jnp.minimum(n, last), prepare)):
                    for number in range(UNITS * pairs):
                        unit, pair = divmod(number, pairs)
                        function(pair, step * UNITS + unit, staged.at[number])

        for_each_pair(turn, write_logits)

        # Communication and exponentials.

        size = bands.rows * tiles.columns  # blocks of a head in a band
        block = jax.lax.broadcasted_iota(jnp.int32, (heads * size, 1), 0)
        last_column = (jax.lax.rem(block, jnp.int32(tiles.columns)) == tiles.columns - 1).astype(wide)
        in_band = jax.lax.div(jax.lax.rem(block, jnp.int32(size)), jnp.int32(tiles.columns))
        last_row = (in_band == bands.rows - 1).astype(wide)

        def communicated(row, band, cdc):
            given = (bands.rows + 2 * bands.halo) * tiles.columns
            starts = [(head * bands.padded(blocks) + band * size) * stride_logits + row for head in range(heads)]
            together = [words.read(logits, start, given, stride_logits) for start in starts]
            return dot(cdc[...], jnp.concatenate(together, axis=0).astype(dtype))

        def masked(rows, row, band):
            hidden = last_column * mask[0, pl.ds(row, 1)]
            if (band + 1) * bands.rows == blocks[0]:
                hidden += last_row * mask[1, pl.ds(row, 1)]
            return rows + hidden

        def of_each(band, i, first):
            """The rows of words of a band's maps in each head: those of word i from `first` on."""
            return [pl.ds((first + i) * stride_weights + head * count + band * size, size) for head in range(heads)]

        def write(band, i, first, values):
            packed = words.pack(values, dtype)
            for head, at in enumerate(of_each(band, i, first)):
                weights[at] = packed[head * size : (head + 1) * size]

        every_band = range(blocks[0] // bands.rows)

        # Between positions. Maxima are kept where the exponentials come.

        def spatial_logits(i, band):
            rows = [i * in_word + j for j in range(in_word)]
            return [masked(communicated(row, band, spatial_cdc), row, band) for row in rows]

        @pl.loop(0, jnp.where(bounded[0] != 0, 0, SPATIAL_ROWS // in_word))
        def _(i):
            for band in every_band:
                found = spatial_logits(i, band)
                found = [
                    [jnp.where(side, rows, -jnp.inf).max(axis=1, keepdims=True) for side in sides] for rows in found
                ]
                write(band, i, 0, [jnp.where(first_side, *largest) for largest in found])

        @pl.loop(0, SPATIAL_ROWS // in_word)
        def _(i):
            for band in every_band:
                kept = words.unpack(jnp.concatenate([weights[at] for at in of_each(band, i, 0)], axis=0), dtype)
                shifts = [jnp.where(bounded[0] != 0, 0.0, largest) for largest in kept]
                write(band, i, 0, [jnp.exp(l - s) for l, s in zip(spatial_logits(i, band), shifts, strict=True)])

        # Between channels; the keys are rows, of which a query is a lane.

        def channel_logits(i, band):
            rows = [i * in_word + j for j in range(in_word)]
            return [communicated(SPATIAL_ROWS + row, band, channel_cdc) for row in rows]

        @pl.loop(0, jnp.where(bounded[1] != 0, 0, CHANNEL_ROWS // in_word))
        def _(i):
            for band in every_band:
                for j, found in enumerate(channel_logits(i, band)):
                    unused = (i * in_word + j + CHANNEL_ROWS >= per_head) & ~first_side
                    found = jnp.where(unused, -jnp.inf, found)
                    found = jnp.maximum(found, roll(found, SIDE))
                    for head in range(heads):
                        at = pl.ds(head * count + band * size, size)
                        own = found[head * size : (head + 1) * size]
                        largest[at] = jnp.where(i + j == 0, own, jnp.maximum(largest[at], own))

        @pl.loop(0, CHANNEL_ROWS // in_word)
        def _(i):
            for band in every_band:
                at = [pl.ds(head * count + band * size, size) for head in range(heads)]
                shift = jnp.where(bounded[1] != 0, 0.0, jnp.concatenate([largest[own] for own in at], axis=0))
                found = [jnp.where(channel, jnp.exp(rows - shift), 0.0) for rows in channel_logits(i, band)]
                write(band, i, SPATIAL_ROWS // in_word, found)

        # Products with the values.

        ones = jnp.where(channel, words.from_rows(jnp.ones((2 * SUMS, LANES), dtype)), 0)

        def gather(pair, unit, ahead):
            """What the products of a pair's weights and values need."""
            parts = [roll(features_of(2, pair, unit), SLOT)]
            for member in range(2):
                start = SPATIAL_ROWS // in_word * stride_weights + place(pair, member, unit)
                own = words.read(weights, start, CHANNEL_ROWS // in_word, stride_weights)
                own = [own, roll(own, SIDE)] if member == 0 else [roll(own, SIDE), own]
                parts += [jnp.where(slot == 2 * member + 1, part, 0) for part in own]
            ahead[: 4 * half] = jnp.concatenate(parts, axis=0)

        def write_attended(pair, unit, ahead):
            v = features_of(2, pair, unit)
            moved, channels = ahead[: 2 * half], jnp.split(ahead[2 * half : 4 * half], 2, axis=0)
            mixed = 0
            for member in range(2):
                row = place(pair, member, unit)
                own = words.rows(words.read(weights, row, SPATIAL_ROWS // in_word, stride_weights), dtype)
                apart = [jnp.where(slot == 2 * member + side, part, 0) for side, part in enumerate((v, moved))]
                mixed += dot(own, words.rows(jnp.concatenate(apart, axis=0), dtype))
            mixed = words.from_rows(mixed.astype(dtype))
            spatial = jnp.concatenate([mixed, roll(mixed, -SLOT)], axis=0)
            none = jnp.zeros((SLOT // in_word, LANES), jnp.int32)
            channels = words.rows(jnp.concatenate([none, channels[0], none, channels[1]], axis=0), dtype)
            mixed = dot(words.rows(jnp.concatenate([v, ones], axis=0), dtype), channels)
            mixed = words.from_rows((mixed[:POSITIONS] / mixed[POSITIONS : POSITIONS + 1]).astype(dtype))
            words.write(attended.at[pair], unit, stride_out, jnp.where(even, spatial, mixed))

        for_each_pair(gather, write_attended)

        # Back to the channels of each position.

        @pl.loop(0, tiles.pixels // in_word)
        def _(i):
            for t in range(rows_of_word // LANES):
                for pair in range(pairs):
                    found = []
                    for f in range(tiles.fold):
                        start = (f * (tiles.pixels // in_word) + i) * stride_out + t * (LANES // tiles.fold)
                        found.append(attended[pair, pl.ds(start, LANES // tiles.fold)])
                    if tiles.fold == 2:
                        rows = range(0, LANES // 2, tiles.columns)
                        found = [jnp.concatenate([part[r : r + tiles.columns] for r in rows for part in found], axis=0)]
                    for j, turned in enumerate(words.unpack(found[0].T, dtype)):
                        for member in range(2):
                            head = 2 * pair + member if heads > 1 else 0
                            part = t if heads > 1 else t + member * (parts // 2)
                            for kind in range(2):
                                channels = slice(kind * group + head * per_head, kind * group + (head + 1) * per_head)
                                source = member * SIDE + kind * SLOT
                                result = turned[source : source + per_head]
                                if kind == 0:
                                    share = 1 / turned[source + SLOT - SUMS : source + SLOT]
                                    result = jnp.concatenate(
                                        [part * share for part in jnp.split(result, per_head // 8)]
                                    )
                                out[i * in_word + j, channels, part * LANES : (part + 1) * LANES] = result.astype(dtype)
                                sums[channels] += result

    scratch = [
        ((4 * group, x.shape[1]), dtype),
        ((8 * group, x.shape[1]), dtype),
        ((2, group, x.shape[1]), dtype),
        ((2, group, tiles.count), wide),
        ((3 * pairs, tiles.pixels // in_word * stride_in, LANES), jnp.int32),
        ((heads * bands.padded(blocks) * stride_logits, LANES), wide),
        ((LOGITS // in_word * stride_weights, LANES), jnp.int32),
        ((heads * count, LANES), wide),
        ((pairs, POSITIONS // in_word * stride_out + 8, LANES), jnp.int32),
        ((UNITS * pairs, (POSITIONS + LANES) // in_word, LANES), jnp.int32),
    ]
    outputs = [((tiles.pixels, 2 * group, tiles.count), dtype), ((2 * group, LANES), wide)]
    mask = MASK * shifted.astype(wide) * column_pairs
    inputs = (*((x,) if same else (x, y)), to_q, to_kv, spatial_cdc.astype(dtype), channel_cdc.astype(dtype), mask)
    return call(kernel, outputs, *inputs, scalars=(shifted, bounded), scratch=scratch, name="ripieno")


def _across_border(blocks, heads) -> np.ndarray:
    """Pairs of positions on two sides of the right and the bottom border, where it passes through their block.

    [2, 32, 128] as the logits lie, two queries side by side.
    """
    second_half = np.arange(BLOCK) >= BLOCK // 2
    places = np.divmod(np.arange(POSITIONS), BLOCK)
    across = [second_half[place][:, None] != second_half[place] for place in places[::-1]]
    return np.stack([np.concatenate([pairs[:SPATIAL_ROWS], pairs[SPATIAL_ROWS:]], axis=1) for pairs in across]).astype(
        np.float32
    )


def _inverse(squared):
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))
