"""The derivatives of the Ripieno by its projected queries, keys and values, and by its communication.

For a group, between positions (a, b) or between channels, with the logits l of unit vectors q and k and the gradient g
of the result:

    w = softmax(CDC(l))    v' = w^T g    l' = CDC^T(w (g v^T - sum_b w g v^T))    q' = l' k    k' = l'^T q

All maps are [b, a], a block on each lane, so that a softmax sums over registers. The maps of all blocks are kept, for
the communication between them. All else is computed for one part of 128 blocks at a time, and features are projected
again where they are needed.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.reference import MASK
from concertormer_jax.ops.tpu.kernels.ripieno_backward_layout import (
    Features,
    Layout,
    Matrices,
    Scratch,
    features_of,
    for_each_position,
    lanes_of,
    multiply,
    of_blocks,
    over_channels,
    over_positions,
    projected_features,
    scratch_of,
    turned_matrix,
    upper_tiles,
)
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, HALF, LANES, ROWS, Tiles, call, dot, inverse_norm, roll


def ripieno_backward(tiles: Tiles, spatial: bool, x, y, gradient, kernels, cdc, heads: int, shifted):
    """The derivatives by queries, keys and values [b, P, G, N] of a group, and by `cdc`.

    spatial: whether positions attend to each other, else channels. x, y: [b, P, C, N], normalised features that give
    the queries, and the keys and values, of at most `tiles.fold` pictures; gradient: [b, P, G, N]; kernels: to_q, to_k,
    to_v of the group, [C, G] each; cdc: `lane_matrix`, with the temperatures in it. shifted: int32 [1], whether the
    shift's mask applies.
    """
    group = kernels[0].shape[1]
    layout = Layout(tiles, spatial, heads, group, len(x))
    same = y is x

    def kernel(*refs):
        shifted, x, *refs = refs
        y, *refs = (x, *refs) if same else refs
        gradient, to_q, to_k, to_v, cdc, turned, *refs = refs
        queries, keys, values, cdc_gradient, *scratch = refs
        scratch = Scratch(*scratch[:4], scratch[4:])
        for i, weights in enumerate((to_q, to_k, to_v)):
            scratch.weights[i] = weights[...].T
        cdc_gradient[...] = jnp.zeros(cdc_gradient.shape, jnp.float32)
        _clear_around(layout, scratch)

        @pl.loop(0, layout.tiles.parts)
        def _(t):
            _write_logits(layout, scratch, x, y, t)

        @pl.loop(0, layout.tiles.parts)
        def _(t):
            _write_weights(layout, scratch, cdc, shifted, t)
            _write_gradients(layout, scratch, y, gradient, values, t)

        @pl.loop(0, layout.tiles.parts)
        def _(t):
            _communicate_back(layout, scratch, turned, cdc_gradient, t)
            _write_queries_and_keys(layout, scratch, x, y, queries, keys, t)

    results = [(gradient.shape, x.dtype)] * 3 + [(cdc.shape, jnp.float32)]
    inputs = (x, gradient) if same else (x, y, gradient)
    turned = turned_matrix(cdc)
    inputs = (*inputs, *kernels, cdc.astype(x.dtype), turned.astype(x.dtype))
    name = f"ripieno_{'spatial' if spatial else 'channel'}_backward"
    return call(kernel, results, *inputs, scalars=(shifted,), scratch=scratch_of(layout, x), name=name)


def _normalised(layout, projected, target: Features, turned: bool):
    """Write the unit vectors of `projected` (see `projected_features`) to `target`, in both orders if `turned`."""
    positions, group = target.positions, layout.group
    if layout.spatial:

        def inverse(rows):
            return inverse_norm(over_channels(layout, jnp.square(rows)))
    else:
        norm = inverse_norm(*over_positions(layout, 1, lambda _, p, half: (jnp.square(projected(p, half)),)))

        def inverse(_):
            return norm

    def write(position, p, half):
        rows = projected(p, half)
        positions.ref[positions.rows(position, 0, group)] = rows * inverse(rows)

    for_each_position(layout, write)
    if turned:
        target.complete(layout)


def _through_norm(layout, projected, gradient: Matrices):
    """Replace the derivatives by the unit vectors by those by the projected features, which the norm divides.

    They are at right angles to these features. gradient: [64, G].
    """
    group = layout.group

    def read(position, p, half):
        return projected(p, half), gradient.ref[gradient.rows(position, 0, group)]

    def sums(rows, given):
        return jnp.square(rows), rows * given

    if not layout.spatial:
        of_block = over_positions(layout, 2, lambda *place: sums(*read(*place)))

    def write(position, p, half):
        rows, given = read(position, p, half)
        if layout.spatial:
            squared, along = (over_channels(layout, part) for part in sums(rows, given))
        else:
            squared, along = of_block
        inverse = inverse_norm(squared)
        gradient.ref[gradient.rows(position, 0, group)] = inverse * (given - rows * (along * jnp.square(inverse)))

    for_each_position(layout, write)


def _store(layout, features: Matrices, out, t):
    """Write the features [64, G] of part t to `out` [b, P, G, N]: the inverse of `of_blocks`."""
    tiles = layout.tiles

    @pl.loop(0, tiles.pixels)
    def _(p):
        halves = [features.ref[features.rows(half * tiles.pixels + p, 0, layout.group)] for half in range(tiles.fold)]
        found = halves
        if tiles.fold == 2:
            first = jnp.where(upper_tiles(layout), halves[0], roll(halves[1], tiles.columns))
            found = [first, jnp.where(upper_tiles(layout), roll(halves[0], -tiles.columns), halves[1])]
        for b in range(layout.pictures):
            out[b, p, :, lanes_of(t)] = found[b].astype(out.dtype)


def _clear_around(layout, scratch):
    """Write zeros before the first part of the maps and behind the last."""
    if layout.reach:
        size = layout.heads * layout.map_rows
        for ref in (scratch.logits, scratch.gradients):
            for start in (0, (layout.tiles.parts + 1) * size):
                ref[pl.ds(start, size)] = jnp.zeros((size, LANES), jnp.float32)


def _write_logits(layout, scratch, x, y, t):
    """Write the logits of part t before communication to `scratch.logits`."""
    queries, keys = (features_of(layout, scratch, number) for number in (layout.queries, layout.keys))
    _normalised(layout, projected_features(layout, scratch, x, 0, t), queries, turned=layout.spatial or layout.keeps)
    _normalised(layout, projected_features(layout, scratch, y, 1, t), keys, turned=not layout.spatial)

    @pl.loop(0, layout.heads)
    def _(h):
        logits, own = layout.map(scratch.logits, h, t + layout.reach), keys.attending(layout, h)
        multiply((layout.size, layout.terms, layout.size), own.row, queries.summed(layout, h), logits)


def _around(layout, ref, t, rows):
    """`rows` of the maps in all parts and heads that the communication of part t reads, side by side on the lanes."""
    reach = range(1 + 2 * layout.reach)
    maps = [layout.map(ref, h, t + d).start for d in reach for h in range(layout.heads)]
    together = [ref[pl.ds(pl.multiple_of(start + rows.start, ROWS), rows.size)] for start in maps]
    return jnp.concatenate(together, axis=1)


def _for_rows(layout, function):
    """Call function(n, rows) for eight rows of a map after another: the n-th eight, and where they are in its rows."""
    count = ROWS * layout.size

    @pl.loop(0, layout.size // ROWS)
    def _(n):
        function(n, pl.ds(n * count, count))


def _write_weights(layout, scratch, cdc, shifted, t):
    """Write the softmax of part t, after communication, to `scratch.maps`."""
    dtype = scratch.weights.dtype

    def write(n, rows):
        found = dot(_around(layout, scratch.logits, t, rows).astype(dtype), cdc[...])
        hidden = _hidden(layout, shifted, n, t) if layout.spatial else 0.0
        for h in range(layout.heads):
            start = pl.multiple_of(h * layout.map_rows + rows.start, ROWS)
            scratch.maps[pl.ds(start, rows.size)] = found[:, h * LANES : (h + 1) * LANES] + hidden

    _for_rows(layout, write)

    @pl.loop(0, layout.heads)
    def _(h):
        weights = layout.map(scratch.maps, h)

        @pl.loop(0, layout.size // ROWS)
        def _(n):
            logits = _column(layout, weights, n)
            found = jnp.exp(logits - logits.max(axis=0))
            share = 1 / found.sum(axis=0)
            for b in range(layout.size):
                weights.ref[weights.rows(b, n * ROWS)] = found[b] * share


def _column(layout, maps, n):
    """The n-th eight columns of maps, [I, 8, 128]."""
    return jnp.stack([maps.ref[maps.rows(b, n * ROWS)] for b in range(layout.size)])


def _hidden(layout, shifted, n, t):
    """The shift's mask for the n-th row of keys and all queries, in the last column of blocks and in the last row."""
    tiles = layout.tiles
    lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1) + t * LANES
    query_column = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
    last_column = jax.lax.rem(lane, jnp.int32(tiles.columns)) == tiles.columns - 1
    last_row = lane >= tiles.count - tiles.columns * tiles.fold
    scale = MASK * shifted[0].astype(jnp.float32)

    def pattern(key_right, query_below):
        across_right = last_column & ((query_column >= HALF) != key_right)
        across_bottom = last_row & ((n >= HALF) != query_below)
        return scale * (across_right.astype(jnp.float32) + across_bottom.astype(jnp.float32))

    patterns = {(right, below): pattern(right, below) for right in (False, True) for below in (False, True)}
    rows = [patterns[right >= HALF, below >= HALF] for right in range(BLOCK) for below in range(BLOCK)]
    return jnp.concatenate(rows, axis=0)


def _write_gradients(layout, scratch, y, gradient, values, t):
    """Write the derivatives by the values to `values`, and those by the logits after communication to scratch."""
    given, own, result = (features_of(layout, scratch, i) for i in range(3))
    projected = projected_features(layout, scratch, y, 2, t)

    def load(position, p, half):
        found = of_blocks(layout, lambda b: gradient[b, p, :, lanes_of(t)].astype(jnp.float32), half)
        given.positions.ref[given.positions.rows(position, 0, layout.group)] = found
        own.positions.ref[own.positions.rows(position, 0, layout.group)] = projected(p, half)

    for_each_position(layout, load)
    given.complete(layout)
    if not layout.spatial:
        own.complete(layout)

    @pl.loop(0, layout.heads)
    def _(h):
        weights = layout.map(scratch.maps, h)
        gradients = layout.map(scratch.gradients, h, t + layout.reach)
        by_values = result.attending(layout, h)
        size, terms = layout.size, layout.terms
        multiply((size, size, terms), weights.row, given.attending(layout, h), by_values)
        multiply((size, terms, size), own.attending(layout, h).row, given.summed(layout, h), gradients)

        @pl.loop(0, size // ROWS)
        def _(n):
            both = [_column(layout, maps, n) for maps in (weights, gradients)]
            along = (both[0] * both[1]).sum(axis=0)
            for b in range(size):
                gradients.ref[gradients.rows(b, n * ROWS)] = both[0][b] * (both[1][b] - along)

    if not layout.spatial:
        result.complete(layout, from_positions=False)
    _store(layout, result.positions, values, t)


def _communicate_back(layout, scratch, turned, cdc_gradient, t):
    """Write the derivatives by the logits before communication to `scratch.maps`, and add those by its matrix.

    turned: `turned_matrix`.
    """
    dtype = scratch.weights.dtype

    def write(_, rows):
        found = dot(_around(layout, scratch.gradients, t, rows).astype(dtype), turned[...])
        after = []
        for h in range(layout.heads):
            start = pl.multiple_of(h * layout.map_rows + rows.start, ROWS)
            scratch.maps[pl.ds(start, rows.size)] = found[:, h * LANES : (h + 1) * LANES]
            start = pl.multiple_of(layout.map(scratch.gradients, h, t + layout.reach).start + rows.start, ROWS)
            after.append(scratch.gradients[pl.ds(start, rows.size)])
        before = _around(layout, scratch.logits, t, rows).astype(dtype)
        cdc_gradient[...] += dot(before, jnp.concatenate(after, axis=1).astype(dtype), (0, 0))

    _for_rows(layout, write)


def _write_queries_and_keys(layout, scratch, x, y, queries, keys, t):
    """Write the derivatives by the projected queries and keys of part t."""
    own_queries, own_keys, result = (features_of(layout, scratch, i) for i in (layout.queries, layout.keys, 2))
    projected = [projected_features(layout, scratch, features, i, t) for i, features in enumerate((x, y))]
    if not layout.keeps:
        for rows, own in zip(projected, (own_queries, own_keys), strict=True):
            _normalised(layout, rows, own, turned=not layout.spatial)
    size, terms = layout.size, layout.terms

    @pl.loop(0, layout.heads)
    def _(h):
        by_query, gradients, key = result.summed(layout, h), layout.map(scratch.maps, h), own_keys.attending(layout, h)
        multiply((terms, size, size), lambda k, b: key.row(b, k), gradients, by_query)

    if layout.spatial:
        result.complete(layout, from_positions=False)
    _through_norm(layout, projected[0], result.positions)
    _store(layout, result.positions, queries, t)

    @pl.loop(0, layout.heads)
    def _(h):
        by_key, gradients = result.attending(layout, h), layout.map(scratch.maps, h)
        multiply((size, size, terms), gradients.row, own_queries.attending(layout, h), by_key)

    if not layout.spatial:
        result.complete(layout, from_positions=False)
    _through_norm(layout, projected[1], result.positions)
    _store(layout, result.positions, keys, t)
