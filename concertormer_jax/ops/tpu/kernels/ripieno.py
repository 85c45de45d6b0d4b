"""The Ripieno: attention inside blocks, between their positions and between their channels (paper, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from concertormer_jax.ops.reference import MASK
from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.ripieno_layout import (
    CHANNEL_ROWS,
    LOGITS,
    POSITIONS,
    SIDE,
    SLOT,
    SPATIAL_ROWS,
    Layout,
    Scratch,
    features_of,
    for_each_pair,
    lane_numbers,
    scratch_of,
    used_by_channels,
)
from concertormer_jax.ops.tpu.kernels.tiles import AT_ONCE, BLOCK, LANES, ROWS, Tiles, call, dot, inverse_norm, roll

SUMS = 8  # lanes at the end of a spatial slot, which hold the sums of the weights


def ripieno(tiles: Tiles, x, y, to_q, to_kv, spatial_cdc, channel_cdc, heads, shifted, bounded):
    """The attended channels [P, 2 G, N] of `ripieno_spatial` and `ripieno_channel`, and sums of them [2 G, 128].

    x, y: [P, C, N], normalised features; x gives the queries, y the keys and values. to_q: [C, 4 G], to_kv: [C, 8 G] as
    in AttentionWeights, the Ripieno being its groups 0 and 1. spatial_cdc, channel_cdc: `cdc_matrix`, with the
    temperatures in it. shifted: int32 [1], whether the shift's mask applies. bounded: int32 [2], of each group, whether
    the exponentials of its logits stay finite without subtracting a maximum. The sums add up over the lanes to the sums
    over all pixels.
    """
    group = to_q.shape[1] // 4
    layout = Layout(tiles, heads, group, x.dtype)
    same = y is x

    def kernel(*refs):
        bounded, x, *refs = refs
        y, to_q, to_kv, spatial_cdc, channel_cdc, mask, out, sums, *scratch = (x, *refs) if same else refs
        scratch = Scratch(*scratch)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        _project(layout, scratch, x, y, to_q, to_kv)
        _write_logits(layout, scratch)
        _communicate(layout, scratch, spatial_cdc, channel_cdc, mask, bounded)
        _attend(layout, scratch)
        _write_channels(layout, scratch, out, sums)

    outputs = [((tiles.pixels, 2 * group, tiles.count), x.dtype), ((2 * group, LANES), jnp.float32)]
    mask = MASK * shifted.astype(jnp.float32) * _across_border()
    features = (x,) if same else (x, y)
    inputs = (*features, to_q, to_kv, spatial_cdc.astype(x.dtype), channel_cdc.astype(x.dtype), mask)
    scratch = scratch_of(layout, x.shape[1])
    return call(kernel, outputs, *inputs, scalars=(bounded,), scratch=scratch, name="ripieno")


def _project(layout: Layout, scratch: Scratch, x, y, to_q, to_kv) -> None:
    """Write the queries of x, and the keys and values of y, to `scratch.features`."""
    heads, group, in_word = layout.heads, layout.group, layout.in_word
    scratch.query_weights[...] = to_q[...].T
    scratch.key_weights[...] = to_kv[...].T
    for kind, projection in enumerate((scratch.query_weights, scratch.key_weights)):
        rows = projection[...].astype(jnp.float32)[group : 2 * group]  # float32 can be cut at every eighth row
        scratch.channel_weights[kind] = rows.astype(layout.dtype)
    _scales(layout, scratch, x, y)

    sources = [(x, scratch.query_weights, 0), (y, scratch.key_weights, 0), (y, scratch.key_weights, 4 * group)]
    half = layout.tiles.parts // 2
    members = [[t, t + half] for t in range(half)] if heads == 1 else [[t] for t in range(layout.tiles.parts)]
    together = AT_ONCE // len(members[0])

    @pl.loop(0, layout.tile_words)
    def _(i):
        for start in range(0, len(members), together):
            chosen = members[start : start + together]
            lanes = [slice(t * LANES, (t + 1) * LANES) for both in chosen for t in both]
            for kind, (features, projection, row) in enumerate(sources):
                projected = []
                for j in range(in_word):
                    taken = jnp.concatenate([features[i * in_word + j, :, own] for own in lanes], axis=1)
                    rows = dot(projection[row : row + 2 * group], taken)
                    if kind < 2:
                        scales = jnp.concatenate([scratch.scales[kind, :, own] for own in lanes], axis=1)
                        rows = _normalised(layout, rows, scales)
                    projected.append(rows)
                for n, both in enumerate(chosen):
                    own = slice(n * len(both) * LANES, (n + 1) * len(both) * LANES)
                    for pair in range(layout.pairs):
                        found = [_of_pair(layout, rows[:, own], pair, kind == 2) for rows in projected]
                        at = pl.ds(i * layout.feature_stride + both[0] * LANES, LANES)
                        scratch.features[kind * layout.pairs + pair, at] = words.pack(found, layout.dtype).T


def _scales(layout, scratch, x, y):
    """Write to `scratch.scales` what normalises the queries and keys whose channels attend to each other."""
    tiles, group = layout.tiles, layout.group
    lane = lane_numbers()[0]
    for kind, features in enumerate((x, y)):
        for _, lanes in tiles.chunks:

            def add(n, total, kind=kind, features=features, lanes=lanes):
                positions = range(AT_ONCE)
                weights = scratch.channel_weights[kind]
                found = [dot(weights, features[n * AT_ONCE + p, :, lanes]) for p in positions]
                return total + sum(map(jnp.square, found))

            none = jnp.zeros((group, lanes.stop - lanes.start), jnp.float32)
            total = jax.lax.fori_loop(0, tiles.pixels // AT_ONCE, add, none)
            if tiles.fold == 2:
                upper = jax.lax.rem(jax.lax.div(lane, jnp.int32(tiles.columns)), 2) == 0
                total += jnp.where(upper, roll(total, -tiles.columns), roll(total, tiles.columns))
            scratch.scales[kind, :, lanes] = inverse_norm(total)


def _normalised(layout, rows, scales):
    """Normalise queries or keys [2 G, K]: the first G over each head's channels, the others by `scales` [G, K]."""
    parts = []
    for head in range(layout.heads):
        own = rows[head * layout.per_head : (head + 1) * layout.per_head]
        parts.append(own * inverse_norm(jnp.square(own).sum(axis=0, keepdims=True)))
    return jnp.concatenate([*parts, rows[layout.group :] * scales], axis=0)


def _of_pair(layout, rows, pair, values):
    """The channels of a pair in 128 tiles [128, 128], from a projection [2 G, lanes of its members].

    values: whether these are values, whose unused spatial lanes are ones.
    """
    per_head = layout.per_head
    found = []
    unused = [jnp.full((SLOT - per_head, LANES), float(filled), jnp.float32) for filled in (values, False)]
    for member, (head, _) in enumerate(layout.members(pair)):
        lanes = slice(0, LANES) if layout.heads > 1 else slice(member * LANES, (member + 1) * LANES)
        for start, rest in zip((head * per_head, layout.group + head * per_head), unused, strict=True):
            found += [rows[start : start + per_head, lanes], rest]
    return jnp.concatenate(found, axis=0)


def _write_logits(layout: Layout, scratch: Scratch) -> None:
    """Write the products of queries and keys to `scratch.logits`, and zeros around the map."""
    tiles, bands, dtype, in_word = layout.tiles, layout.bands, layout.dtype, layout.in_word
    stride, padded = layout.logit_stride, layout.bands.padded(layout.blocks)
    lane, slot = lane_numbers()
    even = (slot & 1) == 0
    first_side = lane < SIDE
    half = POSITIONS // in_word // 2

    if bands.halo:
        size = bands.halo * tiles.columns * stride
        for head in range(layout.heads):
            for start in (head * padded * stride, (head + 1) * padded * stride - size):
                scratch.logits[pl.ds(start, size)] = jnp.zeros((size, LANES), jnp.float32)

    def side_by_side(upper, lower, member):
        """The lanes of a member, of both parts of rows: those of `upper` first, those of `lower` beside them."""
        if member == 0:
            return jnp.where(first_side, upper, roll(lower, SIDE))
        return jnp.where(first_side, roll(upper, SIDE), lower)

    def turn(pair, unit, ahead):
        """Prepare a pair's queries and keys for their products, with the cross-lane units."""
        q, k = (features_of(layout, scratch, kind, pair, unit) for kind in range(2))
        queries = jnp.where(even, q[:half], roll(q[half:], SLOT))
        k = words.rows(k, dtype)
        keys = words.from_rows(jnp.concatenate([k, k], axis=0).T)  # each channel's keys, twice
        ahead[...] = jnp.concatenate([queries, roll(queries, SIDE), keys], axis=0)

    def multiply(pair, unit, ahead):
        keys = [ahead[2 * half + n * SLOT // in_word : 2 * half + (n + 1) * SLOT // in_word] for n in range(4)]
        turned = words.rows(jnp.concatenate(keys[1::2], axis=0), dtype)[:, :POSITIONS]
        channels = dot(turned, words.rows(features_of(layout, scratch, 0, pair, unit), dtype))
        for member, (head, first) in enumerate(layout.members(pair)):
            queries = words.rows(ahead[member * half : (member + 1) * half], dtype)[:, :SIDE]
            apart = [jnp.where(side, keys[2 * member], 0) for side in (first_side, ~first_side)]
            spatial = dot(queries, words.rows(jnp.concatenate(apart, axis=0), dtype))
            own = channels[member * SLOT : (member + 1) * SLOT]
            maps = [spatial, side_by_side(*jnp.split(own, 2, axis=0), member)]
            place = (head * padded + bands.halo * tiles.columns + first + unit) * stride
            scratch.logits[pl.ds(pl.multiple_of(place, ROWS), LOGITS)] = jnp.concatenate(maps, axis=0)

    for_each_pair(layout, scratch, turn, multiply)


def _communicate(layout: Layout, scratch: Scratch, spatial_cdc, channel_cdc, mask, bounded) -> None:
    """Write the exponentials of the logits after communication to `scratch.weights`.

    Until then the maxima of the logits between positions are kept in the same place.
    """
    heads, in_word, dtype, size = layout.heads, layout.in_word, layout.dtype, layout.band_size
    first_side = lane_numbers()[0] < SIDE
    sides = [first_side, ~first_side]
    channel = used_by_channels(layout)
    every_band = range(layout.blocks[0] // layout.bands.rows)

    def of_each_head(band, i=0):
        """Where row i of a band's maps is, for each head."""
        return [pl.ds(i * layout.weight_stride + head * layout.count + band * size, size) for head in range(heads)]

    def gathered(ref, places):
        return jnp.concatenate([ref[at] for at in places], axis=0)

    def write(band, i, values):
        packed = words.pack(values, dtype)
        for head, at in enumerate(of_each_head(band, i)):
            scratch.weights[at] = packed[head * size : (head + 1) * size]

    def spatial_logits(i, band):
        rows = [i * in_word + j for j in range(in_word)]
        return [
            _communicated(layout, scratch, row, band, spatial_cdc) + _hidden(layout, mask, row, band) for row in rows
        ]

    @pl.loop(0, jnp.where(bounded[0] != 0, 0, SPATIAL_ROWS // in_word))
    def _(i):
        for band in every_band:
            largest = []
            for rows in spatial_logits(i, band):
                of_sides = [jnp.where(side, rows, -jnp.inf).max(axis=1, keepdims=True) for side in sides]
                largest.append(jnp.where(first_side, *of_sides))
            write(band, i, largest)

    @pl.loop(0, SPATIAL_ROWS // in_word)
    def _(i):
        for band in every_band:
            kept = words.unpack(gathered(scratch.weights, of_each_head(band, i)), dtype)
            shifts = [jnp.where(bounded[0] != 0, 0.0, largest) for largest in kept]
            logits = spatial_logits(i, band)
            write(band, i, [jnp.exp(rows - shift) for rows, shift in zip(logits, shifts, strict=True)])

    # Between channels a row is a key and a lane a query, with key c on the first side and c + 16 on the second.

    def channel_logits(i, band):
        rows = [SPATIAL_ROWS + i * in_word + j for j in range(in_word)]
        return [_communicated(layout, scratch, row, band, channel_cdc) for row in rows]

    def has_key(i, j):
        """[1, 128], whether row j of word i has a key for a query: heads may have fewer channels than places."""
        return i * in_word + j + jnp.where(first_side, 0, CHANNEL_ROWS) < layout.per_head

    @pl.loop(0, jnp.where(bounded[1] != 0, 0, CHANNEL_ROWS // in_word))
    def _(i):
        for band in every_band:
            for j, found in enumerate(channel_logits(i, band)):
                found = jnp.where(has_key(i, j), found, -jnp.inf)
                found = jnp.maximum(found, roll(found, SIDE))
                for head, at in enumerate(of_each_head(band)):
                    own = found[head * size : (head + 1) * size]
                    scratch.largest[at] = jnp.where(i + j == 0, own, jnp.maximum(scratch.largest[at], own))

    @pl.loop(0, CHANNEL_ROWS // in_word)
    def _(i):
        for band in every_band:
            shift = jnp.where(bounded[1] != 0, 0.0, gathered(scratch.largest, of_each_head(band)))
            logits = channel_logits(i, band)
            found = [jnp.where(channel & has_key(i, j), jnp.exp(rows - shift), 0.0) for j, rows in enumerate(logits)]
            write(band, SPATIAL_ROWS // in_word + i, found)


def _communicated(layout, scratch, row, band, cdc):
    """Row `row` of a band's maps in all heads [heads x blocks, 128], after communication by the matrix `cdc`."""
    bands, columns, stride = layout.bands, layout.tiles.columns, layout.logit_stride
    given = (bands.rows + 2 * bands.halo) * columns
    padded = bands.padded(layout.blocks)
    starts = [(head * padded + band * layout.band_size) * stride + row for head in range(layout.heads)]
    together = [words.read(scratch.logits, start, given, stride) for start in starts]
    return dot(cdc[...], jnp.concatenate(together, axis=0).astype(layout.dtype))


def _hidden(layout, mask, row, band):
    """The shift's mask of such a row: in the last column of blocks, and in the last row of the last band."""
    columns, size = layout.tiles.columns, layout.band_size
    block = jax.lax.broadcasted_iota(jnp.int32, (layout.heads * size, 1), 0)
    last_column = (jax.lax.rem(block, jnp.int32(columns)) == columns - 1).astype(jnp.float32)
    hidden = last_column * mask[0, pl.ds(row, 1)]
    if (band + 1) * layout.bands.rows == layout.blocks[0]:
        in_band = jax.lax.div(jax.lax.rem(block, jnp.int32(size)), jnp.int32(columns))
        last_row = (in_band == layout.bands.rows - 1).astype(jnp.float32)
        hidden += last_row * mask[1, pl.ds(row, 1)]
    return hidden


def _across_border() -> np.ndarray:
    """Which pairs of positions the right, and the bottom, border of a map separates that passes through their block.

    Returns [2, 32, 128], as the logits lie: two queries side by side.
    """
    second_half = np.arange(BLOCK) >= BLOCK // 2
    places = np.divmod(np.arange(POSITIONS), BLOCK)
    across = [second_half[place][:, None] != second_half[place] for place in places[::-1]]
    pairs = [np.concatenate([half[:SPATIAL_ROWS], half[SPATIAL_ROWS:]], axis=1) for half in across]
    return np.stack(pairs).astype(np.float32)


def _attend(layout: Layout, scratch: Scratch) -> None:
    """Write the products of weights and values to `scratch.attended`, those between channels divided by their sums."""
    dtype, in_word, stride = layout.dtype, layout.in_word, layout.weight_stride
    _, slot = lane_numbers()
    even = (slot & 1) == 0
    half = POSITIONS // in_word // 2
    ones = words.from_rows(jnp.ones((2 * SUMS, LANES), dtype))
    ones = jnp.where(used_by_channels(layout), ones, 0)

    def gather(pair, unit, ahead):
        """Prepare a pair's weights and values for their products."""
        parts = [roll(features_of(layout, scratch, 2, pair, unit), SLOT)]
        for member, (head, first) in enumerate(layout.members(pair)):
            start = SPATIAL_ROWS // in_word * stride + head * layout.count + first + unit
            own = words.read(scratch.weights, start, CHANNEL_ROWS // in_word, stride)
            own = [own, roll(own, SIDE)] if member == 0 else [roll(own, SIDE), own]
            parts += [jnp.where(slot == 2 * member + 1, part, 0) for part in own]
        ahead[: 4 * half] = jnp.concatenate(parts, axis=0)

    def multiply(pair, unit, ahead):
        v = features_of(layout, scratch, 2, pair, unit)
        moved, channels = ahead[: 2 * half], jnp.split(ahead[2 * half : 4 * half], 2, axis=0)
        mixed = jnp.zeros((SPATIAL_ROWS, LANES), jnp.float32)
        for member, (head, first) in enumerate(layout.members(pair)):
            own = words.read(scratch.weights, head * layout.count + first + unit, SPATIAL_ROWS // in_word, stride)
            apart = [jnp.where(slot == 2 * member + side, part, 0) for side, part in enumerate((v, moved))]
            mixed += dot(words.rows(own, dtype), words.rows(jnp.concatenate(apart, axis=0), dtype))
        mixed = words.from_rows(mixed.astype(dtype))
        spatial = jnp.concatenate([mixed, roll(mixed, -SLOT)], axis=0)
        none = jnp.zeros((SLOT // in_word, LANES), jnp.int32)
        channels = words.rows(jnp.concatenate([none, channels[0], none, channels[1]], axis=0), dtype)
        mixed = dot(words.rows(jnp.concatenate([v, ones], axis=0), dtype), channels)
        mixed = words.from_rows((mixed[:POSITIONS] / mixed[POSITIONS : POSITIONS + 1]).astype(dtype))
        words.write(scratch.attended.at[pair], unit, layout.attended_stride, jnp.where(even, spatial, mixed))

    for_each_pair(layout, scratch, gather, multiply)


def _write_channels(layout: Layout, scratch: Scratch, out, sums) -> None:
    """Write the attended channels to `out` [P, 2 G, N], those between positions divided by the sums of their weights.

    sums: [2 G, 128], to which they are added.
    """
    tiles, per_head, in_word = layout.tiles, layout.per_head, layout.in_word

    def turned(i, t, pair):
        """Word i of 128 tiles of a pair: [128, 128], with a channel or a sum in each row."""
        found = []
        for f in range(tiles.fold):
            start = (f * layout.tile_words + i) * layout.attended_stride + t * (LANES // tiles.fold)
            found.append(scratch.attended[pair, pl.ds(start, LANES // tiles.fold)])
        if tiles.fold == 2:
            rows = range(0, LANES // 2, tiles.columns)
            found = [jnp.concatenate([part[r : r + tiles.columns] for r in rows for part in found], axis=0)]
        return found[0].T

    def write(position, rows, t, pair):
        for member, (head, first) in enumerate(layout.members(pair)):
            part = t + first * tiles.fold // LANES
            lanes = slice(part * LANES, (part + 1) * LANES)
            for kind in range(2):
                start = kind * layout.group + head * per_head
                source = member * SIDE + kind * SLOT
                result = rows[source : source + per_head]
                if kind == 0:
                    share = 1 / rows[source + SLOT - SUMS : source + SLOT]
                    result = jnp.concatenate([each * share for each in jnp.split(result, per_head // SUMS)])
                out[position, start : start + per_head, lanes] = result.astype(layout.dtype)
                sums[start : start + per_head] += result

    @pl.loop(0, layout.tile_words)
    def _(i):
        for t in range(layout.word_rows // LANES):
            for pair in range(layout.pairs):
                for j, rows in enumerate(words.unpack(turned(i, t, pair), layout.dtype)):
                    write(i * in_word + j, rows, t, pair)
