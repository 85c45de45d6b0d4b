"""The Ripieno: attention inside blocks, between their positions and between their channels.

Two maps of attention lie side by side on the lanes, `member` 0 and 1 of a pair: of two heads, or with a single head of
two blocks, one in the upper and one in the lower half of the map. For each member there are 64 lanes:

    of features   24 channels for `ripieno_spatial`, 8 unused, 24 for `ripieno_channel`, 8 unused (for c = 24)
    of logits     64 keys, or the channels at their place among the features

Communication takes the logits of all blocks and heads apart, two rows of each map side by side.
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
SIDE = LANES // 2  # lanes of a member
SLOT = SIDE // 2  # lanes of a group's channels in it
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
        query_weights, other_weights, qkv, logits, weights, attended = scratch
        query_weights[...] = to_q[...].T
        other_weights[...] = to_kv[...].T
        sums[...] = jnp.zeros(sums.shape, wide)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        first_member = lane < SIDE
        slot = lane & (SIDE - 1)
        spatial, channel = slot < per_head, (slot >= SLOT) & (slot < SLOT + per_head)
        of_member = [first_member, ~first_member]

        # Project, normalise over the channels, and write the features of each block together.

        def feature_rows(rows, first):
            """Of a projection [2 G, lanes of both members]: [128, 128] of the channels of a pair and 128 blocks."""
            none = jnp.zeros((SLOT - per_head, LANES), wide)
            found = []
            for member in range(2):
                head = 2 * first + member if heads > 1 else 0
                lanes = slice(0, LANES) if heads > 1 else slice(member * LANES, (member + 1) * LANES)
                for start in (head * per_head, group + head * per_head):
                    found += [rows[start : start + per_head, lanes], none]
            return jnp.concatenate(found, axis=0)

        def normalised_over_channels(rows):
            parts = []
            for head in range(heads):
                own = rows[head * per_head : (head + 1) * per_head]
                parts.append(own * _inverse(jnp.square(own).sum(axis=0, keepdims=True)))
            return jnp.concatenate([*parts, rows[group:]], axis=0)

        @pl.loop(0, tiles.pixels // in_word)
        def _(i):
            sources = [(x, query_weights, 0), (y, other_weights, 0), (y, other_weights, 4 * group)]
            pairs_of_parts = [[t, t + parts // 2] for t in range(parts // 2)] if heads == 1 else [[t] for t in range(parts)]
            for start in range(0, len(pairs_of_parts), AT_ONCE // len(pairs_of_parts[0])):
                chosen = pairs_of_parts[start : start + AT_ONCE // len(pairs_of_parts[0])]
                for kind, (features, projection, row) in enumerate(sources):
                    projected = []
                    for j in range(in_word):
                        taken = [features[i * in_word + j, :, t * LANES : (t + 1) * LANES] for both in chosen for t in both]
                        rows = dot(projection[row : row + 2 * group], jnp.concatenate(taken, axis=1))
                        projected.append(normalised_over_channels(rows) if kind < 2 else rows)
                    for n, both in enumerate(chosen):
                        lanes = slice(n * len(both) * LANES, (n + 1) * len(both) * LANES)
                        for pair in range(pairs):
                            packed = words.pack([feature_rows(rows[:, lanes], pair) for rows in projected], dtype)
                            at = pl.ds(i * stride_in + both[0] * LANES, LANES)
                            qkv[kind * pairs + pair, at] = packed.T

        def features_of(kind, pair, unit):
            """The words of a pair's features [64 / w, 128]."""
            row, column = jax.lax.div(unit, jnp.int32(tiles.columns)), jax.lax.rem(unit, jnp.int32(tiles.columns))
            starts = [(row * tiles.fold + f) * tiles.columns + column for f in range(tiles.fold)]
            found = [words.read(qkv.at[kind * pairs + pair], start, tiles.pixels // in_word, stride_in) for start in starts]
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

        def normalised_over_positions(features):
            features = features.astype(wide)
            scale = _inverse(jnp.square(features).sum(axis=0, keepdims=True))
            return (features * jnp.where(channel, scale, 1.0)).astype(dtype)

        def write_logits(pair, unit):
            q, k = (normalised_over_positions(words.rows(features_of(kind, pair, unit), dtype)) for kind in range(2))
            only = words.from_rows(k)
            apart = [jnp.where(spatial & own, only, 0) for own in of_member]
            between = dot(q, words.rows(jnp.concatenate(apart, axis=0), dtype), (1, 1))
            turned = q.T
            turned = jnp.concatenate([turned[m * SIDE + SLOT : (m + 1) * SIDE] for m in range(2)], axis=0)
            channels = dot(turned, k)
            for member in range(2):
                maps = []
                for rows, half, offset in ((between, SPATIAL_ROWS, 0), (channels, CHANNEL_ROWS, member * SLOT)):
                    upper, lower = rows[offset : offset + half], rows[offset + half : offset + 2 * half]
                    if member == 0:
                        maps.append(jnp.where(first_member, upper, roll(lower, SIDE)))
                    else:
                        maps.append(jnp.where(first_member, roll(upper, SIDE), lower))
                logits[pl.ds(pl.multiple_of(place_of_logits(pair, member, unit), 8), LOGITS)] = jnp.concatenate(maps, axis=0)

        @pl.loop(0, units // UNITS)
        def _(n):
            for unit in range(UNITS):
                for pair in range(pairs):
                    write_logits(pair, n * UNITS + unit)

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

        def spatial_logits(row, band):
            return masked(communicated(row, band, spatial_cdc), row, band)

        def channel_logits(row, band):
            return communicated(SPATIAL_ROWS + row, band, channel_cdc)

        def numerators(number, first, after, used, finish):
            """Write what follows from rows of logits: `number` of them, from word `first` of the weights on."""

            def at(i, band, head):
                return pl.ds((first + i) * stride_weights + head * count + band * size, size)

            def write(i, band, values):
                packed = words.pack(values, dtype)
                for head in range(heads):
                    weights[at(i, band, head)] = packed[head * size : (head + 1) * size]

            def each(i, what):
                for band in range(blocks[0] // bands.rows):
                    write(i, band, [what(after(i * in_word + j, band), i, band, j) for j in range(in_word)])

            def maxima(rows, *_):
                sides = [jnp.where(used & own, rows, -jnp.inf).max(axis=1, keepdims=True) for own in of_member]
                return jnp.where(first_member, *sides)

            def exponentials(rows, i, band, j):
                before = jnp.concatenate([weights[at(i, band, head)] for head in range(heads)], axis=0)
                shift = jnp.where(bounded[int(first > 0)] != 0, 0.0, words.unpack(before, dtype)[j])
                return finish(jnp.exp(rows - shift))

            # Maxima only where they are needed; they are kept where the exponentials come.
            @pl.loop(0, jnp.where(bounded[int(first > 0)] != 0, 0, number // in_word))
            def _(i):
                each(i, maxima)

            @pl.loop(0, number // in_word)
            def _(i):
                each(i, exponentials)

        ones = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0) < SIDE) == first_member

        def shares(weights):
            weights = jnp.where(channel, weights, 0.0)
            return weights / dot(weights.astype(dtype), ones.astype(dtype))

        numerators(SPATIAL_ROWS, 0, spatial_logits, lane >= 0, lambda weights: weights)
        numerators(CHANNEL_ROWS, SPATIAL_ROWS // in_word, channel_logits, channel, shares)

        # Products with the values.

        one = words.from_rows(jnp.ones((in_word, LANES), dtype))

        def write_attended(pair, unit):
            rows = [place(pair, member, unit) for member in range(2)]
            between = [words.read(weights, row, SPATIAL_ROWS // in_word, stride_weights) for row in rows]
            upper = jnp.where(first_member, between[0], roll(between[1], SIDE))
            lower = jnp.where(first_member, roll(between[0], SIDE), between[1])
            between = words.rows(jnp.concatenate([upper, lower], axis=0), dtype)
            first = SPATIAL_ROWS // in_word * stride_weights
            channels = [words.read(weights, first + row, CHANNEL_ROWS // in_word, stride_weights) for row in rows]
            none = jnp.zeros((SLOT // in_word, LANES), jnp.int32)
            parts = []
            for member, own in enumerate(channels):
                ordered = [own, roll(own, SIDE)] if member == 0 else [roll(own, SIDE), own]
                parts += [none, *(jnp.where(of_member[member], part, 0) for part in ordered)]
            channels = words.rows(jnp.concatenate(parts, axis=0), dtype)
            v = features_of(2, pair, unit)
            counted = jnp.where(slot >= SLOT, one, jnp.where(spatial, v, 0))  # sums of the weights, beside the values
            counted = jnp.concatenate([jnp.where(own, counted, 0) for own in of_member], axis=0)
            mixed = dot(between, words.rows(counted, dtype))
            mixed = jnp.where(slot < SLOT, mixed / roll(mixed, -SLOT), dot(words.rows(v, dtype), channels, (1, 1)))
            words.write(attended.at[pair], unit, stride_out, words.from_rows(mixed.astype(dtype)))

        @pl.loop(0, units // UNITS)
        def _(n):
            for unit in range(UNITS):
                for pair in range(pairs):
                    write_attended(pair, n * UNITS + unit)

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
                                out[i * in_word + j, channels, part * LANES : (part + 1) * LANES] = result.astype(dtype)
                                sums[channels] += result

    scratch = [
        ((4 * group, x.shape[1]), dtype),
        ((8 * group, x.shape[1]), dtype),
        ((3 * pairs, tiles.pixels // in_word * stride_in, LANES), jnp.int32),
        ((heads * bands.padded(blocks) * stride_logits, LANES), wide),
        ((LOGITS // in_word * stride_weights, LANES), jnp.int32),
        ((pairs, POSITIONS // in_word * stride_out + 8, LANES), jnp.int32),
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
    return np.stack([np.concatenate([pairs[:SPATIAL_ROWS], pairs[SPATIAL_ROWS:]], axis=1) for pairs in across]).astype(np.float32)


def _inverse(squared):
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))
