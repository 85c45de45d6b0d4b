"""Where the derivatives of the Ripieno keep their maps and features, and how these are read and written."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.lanes import Matrices, transpose
from concertormer_jax.ops.tpu.kernels.ripieno_layout import POSITIONS
from concertormer_jax.ops.tpu.kernels.tiles import AT_ONCE, LANES, Tiles, dot, roll


def lane_matrix(tiles: Tiles, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution of blocks with `kernel` [3, 3, s, t] as a matrix that multiplies lanes from the right.

    Its rows are the lanes of the heads s in the 128 lanes before, at and behind those of the result, its columns these
    in the heads t; if there are only 128 lanes, its rows are those of the heads s.
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


def turned_matrix(matrix, reach):
    """The matrix of the transposed convolution, which reads other lanes in the opposite order."""
    size = matrix.shape[1]
    parts = matrix.reshape(1 + 2 * reach, size, size)[::-1]
    return parts.swapaxes(1, 2).reshape(-1, size)


class Layout(NamedTuple):
    """Of a group of the Ripieno with so many channels."""

    tiles: Tiles
    spatial: bool
    heads: int
    group: int
    pictures: int

    @property
    def per_head(self) -> int:
        return self.group // self.heads

    @property
    def keeps(self) -> bool:
        """Whether queries and keys stay in VMEM until their derivatives are taken: where all blocks are one part."""
        return self.tiles.parts == 1

    @property
    def queries(self) -> int:
        """The number of the queries among the features in scratch."""
        return 3 if self.keeps else 0

    @property
    def keys(self) -> int:
        return self.queries + 1

    @property
    def reach(self) -> int:
        """How many parts before and behind one its communication reads."""
        return 0 if self.tiles.parts == 1 else 1

    @property
    def size(self) -> int:
        """Of a map's sides."""
        return POSITIONS if self.spatial else self.per_head

    @property
    def terms(self) -> int:
        """Of the products of queries and keys."""
        return self.per_head if self.spatial else POSITIONS

    @property
    def map_rows(self) -> int:
        return self.size * self.size

    def map(self, ref, h, part=0) -> Matrices:
        """The maps of a head in a part, of which there are `reach` more at the beginning."""
        return Matrices(ref, self.size, (part * self.heads + h) * self.map_rows)


class Scratch(NamedTuple):
    """What is kept in VMEM: references in the kernel, (shape, type) outside of it.

    Maps [b, a] of each head are rows of 128 lanes. The features of a part are there with the positions first, and with
    the channels first.
    """

    weights: Any  # [3, G, C]: those of queries, keys and values, a row for each output channel
    logits: Any  # of all parts
    gradients: Any  # by the logits after communication, of all parts
    maps: Any  # of a part
    features: Sequence[Any]  # of a part, alternately with the positions first and with the channels first


def scratch_of(layout, x):
    maps = layout.heads * layout.map_rows
    all_maps = ((layout.tiles.parts + 2 * layout.reach) * maps, LANES), jnp.float32
    by_position = (POSITIONS * words.stride_to_read(layout.group), LANES), jnp.float32
    by_channel = (layout.group * words.stride_to_read(POSITIONS), LANES), jnp.float32
    weights = (3, layout.group, x.shape[2]), x.dtype
    features = [by_position, by_channel] * (layout.keys + 1 if layout.keeps else 3)
    return [weights, all_maps, all_maps, ((maps, LANES), jnp.float32), *features]


class Features(NamedTuple):
    """Features of a part in both orders of their axes: matrices [64, G] and [G, 64]."""

    positions: Matrices
    channels: Matrices

    def complete(self, layout: Layout, from_positions: bool = True) -> None:
        """Write one order from the other."""
        if from_positions:
            transpose((POSITIONS, layout.group), self.positions, self.channels)
        else:
            transpose((layout.group, POSITIONS), self.channels, self.positions)

    def attending(self, layout: Layout, h) -> Matrices:
        """Those of a head with what attends first: [positions, channels], or [channels, positions]."""
        channel = h * layout.per_head
        return self.positions.at(0, channel) if layout.spatial else self.channels.at(channel, 0)

    def summed(self, layout: Layout, h) -> Matrices:
        """Those of a head with what its products sum over first."""
        channel = h * layout.per_head
        return self.channels.at(channel, 0) if layout.spatial else self.positions.at(0, channel)


def features_of(layout, scratch, number):
    positions, channels = scratch.features[2 * number : 2 * number + 2]
    pitches = words.stride_to_read(layout.group), words.stride_to_read(POSITIONS)
    return Features(Matrices(positions, pitches[0]), Matrices(channels, pitches[1]))


def for_each_position(layout: Layout, function: Callable[[Any, Any, int], None]) -> None:
    """function(position in the block, pixel in the tile, number of the tile in the block)."""
    pixels = layout.tiles.pixels
    for half in range(layout.tiles.fold):

        @pl.loop(0, pixels // AT_ONCE)
        def _(n, half=half):
            for p in range(AT_ONCE):
                function(half * pixels + n * AT_ONCE + p, n * AT_ONCE + p, half)


def lanes_of(t):
    return pl.ds(pl.multiple_of(t * LANES, LANES), LANES)


def upper_tiles(layout):
    """[1, 128], which lanes have the upper tiles of blocks that are two tiles."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return jax.lax.rem(jax.lax.div(lane, jnp.int32(layout.tiles.columns)), 2) == 0


def of_blocks(layout, load, half):
    """The tiles of blocks, of which load(picture) returns one of each: [rows, 128].

    Of blocks of two tiles, where their upper ones are; where the lower ones are come those of the second picture.
    """
    columns = layout.tiles.columns
    if layout.tiles.fold == 1:
        return load(0)
    first = roll(load(0), -columns) if half else load(0)
    if layout.pictures == 1:
        return jnp.where(upper_tiles(layout), first, 0.0)
    return jnp.where(upper_tiles(layout), first, load(1) if half else roll(load(1), columns))


def projected_features(layout, scratch, features, number, t):
    """A function of a pixel and a half to the projected features [G, 128] of a part."""

    def at(p, half):
        return of_blocks(layout, lambda b: dot(scratch.weights[number], features[b, p, :, lanes_of(t)]), half)

    return at


def over_channels(layout, features):
    """The sums [G, 128] over the channels of each head, as often as it has channels."""
    own = jnp.split(features, layout.heads, axis=0)
    return jnp.concatenate([jnp.broadcast_to(part.sum(axis=0, keepdims=True), part.shape) for part in own], axis=0)


def over_positions(layout, count, function):
    """The sums of `count` results [G, 128] of function(position, pixel, half) over a block's positions."""
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
