"""Where the derivatives of the Ripieno keep their maps and features, and how these are read, written and multiplied.

Blocks lie on the lanes, each of which has matrices of its own. The vector units multiply those of 128 blocks at once;
nothing has to be turned for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.ripieno_layout import POSITIONS
from concertormer_jax.ops.tpu.kernels.tiles import AT_ONCE, LANES, ROWS, Tiles, dot, roll

UNROLLED = 8  # terms of a product's sum that are added without a loop


class Matrices(NamedTuple):
    """Float32 matrices [I, J], one on each of 128 lanes.

    Their entries (i, j) are row `start` + i `pitch` + j of `ref`, [rows, 128].
    """

    ref: Any
    pitch: int
    start: Any = 0

    def row(self, i, j) -> jax.Array:
        """The entries (i, j) of all: [1, 128]."""
        return self.ref[pl.ds(self.start + i * self.pitch + j, 1)]

    def rows(self, i, j, count: int = ROWS):
        """The rows of `ref` with the entries (i, j), (i, j + 1), ... of all. j: a multiple of 8."""
        return pl.ds(pl.multiple_of(self.start + i * self.pitch + j, ROWS), count)

    def at(self, i, j) -> "Matrices":
        """The parts of the matrices that begin at (i, j)."""
        return self._replace(start=self.start + i * self.pitch + j)


def multiply(size: tuple[int, int, int], a: Callable[[Any, Any], jax.Array], b: Matrices, target: Matrices) -> None:
    """Write the products of a [I, R] and b [R, J] to `target` [I, J].

    size: (I, R, J), multiples of 8. a: a function of i and r to the entries [1, 128] of all, such as `Matrices.row`.
    """
    outer, terms, inner = size
    tiles = inner // ROWS
    at_once = 4 if tiles > 3 else 8  # as many sums as fit in registers
    unrolled = 1 if words.interpreted() else UNROLLED

    @pl.loop(0, outer // at_once)
    def _(n):
        def add(m, totals):
            totals = list(totals)
            for r in range(unrolled):
                right = [b.ref[b.rows(m * unrolled + r, j * ROWS)] for j in range(tiles)]
                for i in range(at_once):
                    left = a(n * at_once + i, m * unrolled + r)
                    for j, tile in enumerate(right):
                        totals[i * tiles + j] += left * tile
            return tuple(totals)

        none = jnp.zeros((ROWS, LANES), jnp.float32)
        totals = jax.lax.fori_loop(0, terms // unrolled, add, (none,) * (at_once * tiles))
        for i in range(at_once):
            for j in range(tiles):
                target.ref[target.rows(n * at_once + i, j * ROWS)] = totals[i * tiles + j]


def transpose(size: tuple[int, int], source: Matrices, target: Matrices) -> None:
    """Write the matrices `source` [I, J] to `target` [J, I]. The pitch of `source` must be a `words.stride_to_read`."""
    outer, inner = size

    @pl.loop(0, inner)
    def _(j):
        for i in range(0, outer, ROWS):
            target.ref[target.rows(j, i)] = words.read(
                source.ref, source.start + i * source.pitch + j, ROWS, source.pitch
            )


def lane_matrix(tiles: Tiles, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution of blocks with `kernel` [3, 3, s, t] as a matrix that multiplies lanes from the right.

    Columns: (head t, lane) of a result of 128 lanes. Rows: (part, head s, lane), where the parts are the 128 lanes
    before those of the result, these themselves, and the 128 behind them; where a map has only 128, these alone.
    """
    columns, in_part = tiles.columns, LANES // tiles.columns // tiles.fold
    row, half, column = np.unravel_index(np.arange(LANES), (in_part, tiles.fold, columns))
    reach = [0] if tiles.count == LANES else [-1, 0, 1]
    places = np.zeros((3, 3, len(reach), LANES, LANES), np.float32)
    for number, part in enumerate(reach):
        down = (row[:, None] + part * in_part) - row
        right = column[:, None] - column
        near = (half[:, None] == half) & (abs(down) <= 1) & (abs(right) <= 1)
        source, target = np.nonzero(near)
        places[down[near] + 1, right[near] + 1, number, source, target] = 1
    places, heads = places.reshape(9, len(reach), LANES, LANES), kernel.shape[-1]
    matrix = jnp.einsum("kdio,kst->dsito", places, kernel.reshape(9, heads, heads), precision="highest")
    return matrix.reshape(-1, heads * LANES)


def turned_matrix(matrix: jax.Array) -> jax.Array:
    """The `lane_matrix` of the transposed convolution, which reads the parts in the opposite order."""
    size = matrix.shape[1]
    parts = matrix.reshape(-1, size, size)[::-1]
    return parts.swapaxes(1, 2).reshape(-1, size)


class Layout(NamedTuple):
    """How the derivatives of one group lie. spatial: whether positions attend to each other, else channels."""

    tiles: Tiles
    spatial: bool
    heads: int
    group: int  # channels of all heads
    pictures: int  # that are taken at once

    @property
    def per_head(self) -> int:
        return self.group // self.heads

    @property
    def keeps(self) -> bool:
        """Whether queries and keys stay in VMEM until their derivatives are taken: where there is only one part."""
        return self.tiles.parts == 1

    @property
    def queries(self) -> int:
        """The number of the queries among `Scratch.features`."""
        return 3 if self.keeps else 0

    @property
    def keys(self) -> int:
        """The number of the keys among `Scratch.features`."""
        return self.queries + 1

    @property
    def reach(self) -> int:
        """How many parts on each side of a part its communication reads."""
        return 0 if self.tiles.parts == 1 else 1

    @property
    def size(self) -> int:
        """The side of a map: what attends to each other."""
        return POSITIONS if self.spatial else self.per_head

    @property
    def terms(self) -> int:
        """The terms of a product of query and key."""
        return self.per_head if self.spatial else POSITIONS

    @property
    def map_rows(self) -> int:
        """The rows of a head's maps."""
        return self.size * self.size

    def map(self, ref, h, part=0) -> Matrices:
        """The maps of a head in a part of `ref`, which may begin with the `reach` parts of zeros before the map."""
        return Matrices(ref, self.size, (part * self.heads + h) * self.map_rows)


class Scratch(NamedTuple):
    """What is kept in VMEM: references in the kernel, (shape, type) outside of it.

    Rows are [128], a block on each lane. The parts of a map are its blocks, 128 at a time.
    """

    weights: Any  # [3, G, C]: those of queries, keys and values, a row for each output channel
    logits: Any  # rows of maps [b, a] of (part, head), with `reach` parts of zeros at both ends
    gradients: Any  # likewise, by the logits after communication
    maps: Any  # rows of maps [b, a] of the heads in one part
    features: Sequence[Any]  # of one part, each twice: rows [position, channel], and rows [channel, position]


def scratch_of(layout: Layout, x: jax.Array) -> list[tuple[tuple[int, ...], Any]]:
    """(shape, type) of what `Scratch` has, in its order. x: the features [b, P, C, N]."""
    maps = layout.heads * layout.map_rows
    all_maps = ((layout.tiles.parts + 2 * layout.reach) * maps, LANES), jnp.float32
    by_position = (POSITIONS * words.stride_to_read(layout.group), LANES), jnp.float32
    by_channel = (layout.group * words.stride_to_read(POSITIONS), LANES), jnp.float32
    weights = (3, layout.group, x.shape[2]), x.dtype
    features = [by_position, by_channel] * (layout.keys + 1 if layout.keeps else 3)
    return [weights, all_maps, all_maps, ((maps, LANES), jnp.float32), *features]


class Features(NamedTuple):
    """Features of a part in both orders of their axes: [64, G] and [G, 64]."""

    positions: Matrices
    channels: Matrices

    def complete(self, layout: Layout, from_positions: bool = True) -> None:
        """Write one order from the other: the channels' from the positions', or the other way round."""
        if from_positions:
            transpose((POSITIONS, layout.group), self.positions, self.channels)
        else:
            transpose((layout.group, POSITIONS), self.channels, self.positions)

    def attending(self, layout: Layout, h) -> Matrices:
        """The features of a head, with the axis first whose entries attend to each other."""
        channel = h * layout.per_head
        return self.positions.at(0, channel) if layout.spatial else self.channels.at(channel, 0)

    def summed(self, layout: Layout, h) -> Matrices:
        """The features of a head, with the axis first over which products of queries and keys sum."""
        channel = h * layout.per_head
        return self.channels.at(channel, 0) if layout.spatial else self.positions.at(0, channel)


def features_of(layout: Layout, scratch: Scratch, number: int) -> Features:
    """Features `number` in scratch."""
    positions, channels = scratch.features[2 * number : 2 * number + 2]
    pitches = words.stride_to_read(layout.group), words.stride_to_read(POSITIONS)
    return Features(Matrices(positions, pitches[0]), Matrices(channels, pitches[1]))


def for_each_position(layout: Layout, function: Callable[[Any, Any, int], None]) -> None:
    """Call function(position in the block, pixel in the tile, number of the tile in the block) for all positions."""
    pixels = layout.tiles.pixels
    for half in range(layout.tiles.fold):

        @pl.loop(0, pixels // AT_ONCE)
        def _(n, half=half):
            for p in range(AT_ONCE):
                function(half * pixels + n * AT_ONCE + p, n * AT_ONCE + p, half)


def lanes_of(t):
    """The lanes of part t."""
    return pl.ds(pl.multiple_of(t * LANES, LANES), LANES)


def upper_tiles(layout):
    """[1, 128], whether a lane has the upper tile of a block that is two tiles."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return jax.lax.rem(jax.lax.div(lane, jnp.int32(layout.tiles.columns)), 2) == 0


def of_blocks(layout, load, half):
    """The tiles `half` (0: the upper, 1: the lower) of all blocks [rows, 128]. load: a picture's number to its tiles.

    Where blocks are two tiles, those of the first picture come on the lanes of its upper tiles, and those of the second
    picture, or zeros, on the lanes of its lower tiles.
    """
    columns = layout.tiles.columns
    if layout.tiles.fold == 1:
        return load(0)
    first = roll(load(0), -columns) if half else load(0)
    if layout.pictures == 1:
        return jnp.where(upper_tiles(layout), first, 0.0)
    return jnp.where(upper_tiles(layout), first, load(1) if half else roll(load(1), columns))


def projected_features(layout, scratch, features, number, t):
    """A function of a pixel and a half to the projected features [G, 128] of part t. number: in `Scratch.weights`."""

    def at(p, half):
        return of_blocks(layout, lambda b: dot(scratch.weights[number], features[b, p, :, lanes_of(t)]), half)

    return at


def over_channels(layout, features):
    """The sums over the channels of each head, in every one of its channels: [G, 128]."""
    own = jnp.split(features, layout.heads, axis=0)
    return jnp.concatenate([jnp.broadcast_to(part.sum(axis=0, keepdims=True), part.shape) for part in own], axis=0)


def over_positions(layout, count, function):
    """The sums over a block's positions of the `count` results [G, 128] of function(position, pixel, half)."""
    pixels = layout.tiles.pixels
    totals = (jnp.zeros((layout.group, LANES), jnp.float32),) * count
    for half in range(layout.tiles.fold):

        def add(n, totals, half=half):
            for p in range(AT_ONCE):
                found = function(half * pixels + n * AT_ONCE + p, n * AT_ONCE + p, half)
                totals = tuple(total + each for total, each in zip(totals, found, strict=True))
            return totals

        totals = jax.lax.fori_loop(0, pixels // AT_ONCE, add, totals)
    return totals
