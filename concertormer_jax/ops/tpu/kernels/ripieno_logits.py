"""The Ripieno's logits: features are projected, normalised and gathered by blocks, and multiplied."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.ripieno_layout import (
    LOGITS,
    POSITIONS,
    SIDE,
    SLOT,
    Layout,
    Scratch,
    features_of,
    for_each_pair,
    lane_numbers,
)
from concertormer_jax.ops.tpu.kernels.tiles import AT_ONCE, LANES, ROWS, dot, inverse_norm, roll


def project(layout: Layout, scratch: Scratch, x, y, to_q, to_kv) -> None:
    """Write to `scratch.features` the queries of x, and the keys and values of y."""
    heads, group, in_word = layout.heads, layout.group, layout.in_word
    scratch.query_weights[...] = to_q[...].T
    scratch.key_weights[...] = to_kv[...].T
    for kind, projection in enumerate((scratch.query_weights, scratch.key_weights)):
        rows = projection[...].astype(jnp.float32)[group : 2 * group]
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
    """1 / the norm over a block's positions, of queries and keys whose channels attend to each other."""
    tiles, group, parts = layout.tiles, layout.group, layout.tiles.parts
    lane = lane_numbers()[0]
    for kind, features in enumerate((x, y)):
        for start in range(0, parts, AT_ONCE):
            lanes = slice(start * LANES, min(start + AT_ONCE, parts) * LANES)

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
    """Queries or keys [2 G, K]: the first G by their norm over each head's channels, the others times `scales`."""
    parts = []
    for head in range(layout.heads):
        own = rows[head * layout.per_head : (head + 1) * layout.per_head]
        parts.append(own * inverse_norm(jnp.square(own).sum(axis=0, keepdims=True)))
    return jnp.concatenate([*parts, rows[layout.group :] * scales], axis=0)


def _of_pair(layout, rows, pair, values):
    """Of a projection [2 G, lanes of both members]: [128, 128] of the channels of a pair and 128 tiles."""
    per_head = layout.per_head
    found = []
    unused = [jnp.full((SLOT - per_head, LANES), float(filled), jnp.float32) for filled in (values, False)]
    for member, (head, _) in enumerate(layout.members(pair)):
        lanes = slice(0, LANES) if layout.heads > 1 else slice(member * LANES, (member + 1) * LANES)
        for start, rest in zip((head * per_head, layout.group + head * per_head), unused, strict=True):
            found += [rows[start : start + per_head, lanes], rest]
    return jnp.concatenate(found, axis=0)


def write_logits(layout: Layout, scratch: Scratch) -> None:
    """Write to `scratch.logits` the products of queries and keys, and zeros around the map."""
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
        """The lanes of a member in two parts of rows, those of the upper first."""
        if member == 0:
            return jnp.where(first_side, upper, roll(lower, SIDE))
        return jnp.where(first_side, roll(upper, SIDE), lower)

    def turn(pair, unit, ahead):
        """What the products of a pair's queries and keys need, which the cross-lane units prepare."""
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
