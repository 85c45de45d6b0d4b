"""The Ripieno behind its logits: communication between blocks and heads, exponentials, and products with the values."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.ripieno_layout import (
    CHANNEL_ROWS,
    POSITIONS,
    SIDE,
    SLOT,
    SPATIAL_ROWS,
    Layout,
    Scratch,
    features_of,
    for_each_pair,
    lane_numbers,
    used_by_channels,
)
from concertormer_jax.ops.tpu.kernels.tiles import LANES, dot, roll

SUMS = 8  # lanes at the end of a spatial slot, where sums of weights are


def communicate(layout: Layout, scratch: Scratch, spatial_cdc, channel_cdc, mask, bounded) -> None:
    """Write to `scratch.weights` the exponentials of the logits after communication.

    The maxima of those between positions are kept where the exponentials come.
    """
    heads, in_word, dtype, size = layout.heads, layout.in_word, layout.dtype, layout.band_size
    first_side = lane_numbers()[0] < SIDE
    sides = [first_side, ~first_side]
    channel = used_by_channels(layout)
    every_band = range(layout.blocks[0] // layout.bands.rows)

    def of_each_head(band, i=0):
        """Where row i of a band's maps is in each head."""
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

    # Between channels the keys are rows, of which a query is a lane.

    def channel_logits(i, band):
        rows = [SPATIAL_ROWS + i * in_word + j for j in range(in_word)]
        return [_communicated(layout, scratch, row, band, channel_cdc) for row in rows]

    @pl.loop(0, jnp.where(bounded[1] != 0, 0, CHANNEL_ROWS // in_word))
    def _(i):
        for band in every_band:
            for j, found in enumerate(channel_logits(i, band)):
                unused = (i * in_word + j + CHANNEL_ROWS >= layout.per_head) & ~first_side
                found = jnp.where(unused, -jnp.inf, found)
                found = jnp.maximum(found, roll(found, SIDE))
                for head, at in enumerate(of_each_head(band)):
                    own = found[head * size : (head + 1) * size]
                    scratch.largest[at] = jnp.where(i + j == 0, own, jnp.maximum(scratch.largest[at], own))

    @pl.loop(0, CHANNEL_ROWS // in_word)
    def _(i):
        for band in every_band:
            shift = jnp.where(bounded[1] != 0, 0.0, gathered(scratch.largest, of_each_head(band)))
            found = [jnp.where(channel, jnp.exp(rows - shift), 0.0) for rows in channel_logits(i, band)]
            write(band, SPATIAL_ROWS // in_word + i, found)


def _communicated(layout, scratch, row, band, cdc):
    """Row `row` of a band's maps in all heads [heads x blocks, 128] after the convolution with `cdc`."""
    bands, columns, stride = layout.bands, layout.tiles.columns, layout.logit_stride
    given = (bands.rows + 2 * bands.halo) * columns
    padded = bands.padded(layout.blocks)
    starts = [(head * padded + band * layout.band_size) * stride + row for head in range(layout.heads)]
    together = [words.read(scratch.logits, start, given, stride) for start in starts]
    return dot(cdc[...], jnp.concatenate(together, axis=0).astype(layout.dtype))


def _hidden(layout, mask, row, band):
    """The shift's mask for such a row: in the last column of blocks, and in the last row of the last band."""
    columns, size = layout.tiles.columns, layout.band_size
    block = jax.lax.broadcasted_iota(jnp.int32, (layout.heads * size, 1), 0)
    last_column = (jax.lax.rem(block, jnp.int32(columns)) == columns - 1).astype(jnp.float32)
    hidden = last_column * mask[0, pl.ds(row, 1)]
    if (band + 1) * layout.bands.rows == layout.blocks[0]:
        in_band = jax.lax.div(jax.lax.rem(block, jnp.int32(size)), jnp.int32(columns))
        last_row = (in_band == layout.bands.rows - 1).astype(jnp.float32)
        hidden += last_row * mask[1, pl.ds(row, 1)]
    return hidden


def attend(layout: Layout, scratch: Scratch) -> None:
    """Write to `scratch.attended` the products of weights and values, those between channels over their sums."""
    dtype, in_word, stride = layout.dtype, layout.in_word, layout.weight_stride
    _, slot = lane_numbers()
    even = (slot & 1) == 0
    half = POSITIONS // in_word // 2
    ones = words.from_rows(jnp.ones((2 * SUMS, LANES), dtype))
    ones = jnp.where(used_by_channels(layout), ones, 0)

    def gather(pair, unit, ahead):
        """What the products of a pair's weights and values need."""
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


def write_channels(layout: Layout, scratch: Scratch, out, sums) -> None:
    """Write what attends to `out` [P, 2 G, N], those between positions over the sums of their weights.

    sums: [2 G, 128], to which all is added.
    """
    tiles, per_head, in_word = layout.tiles, layout.per_head, layout.in_word

    def turned(i, t, pair):
        """Word i of 128 tiles of a pair as [128, 128], a channel or sum in each row."""
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
