"""Where the Ripieno's features, logits and weights lie in VMEM, and the matrix of its communication.

Features lie in pairs. The two members of a pair are two heads of a block; where there is only one head, two blocks, one
from the upper and one from the lower half of the map. The 64 positions of a pair are rows, and its channels are on the
128 lanes, in four slots of 32:

    0  member 0, spatial    1  member 0, channel    2  member 1, spatial    3  member 1, channel

In a spatial slot of the values the last eight lanes are ones, so that attention writes the sums of the weights there.

A row of logits holds those of two queries, positions p and p + 32, each with 64 keys on the lanes; or those of two
keys, channels c and c + 16, each with the queries on the lanes of slot 1 and slot 3. Communication takes one row of all
maps at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, LANES, Tiles

POSITIONS = BLOCK * BLOCK
SIDE = LANES // 2  # lanes of a member of a pair, and of a query's logits
SLOT = SIDE // 2  # lanes of a group's channels in it
SPATIAL_ROWS, CHANNEL_ROWS = POSITIONS // 2, SLOT // 2  # rows of a map's logits, two of which lie side by side
LOGITS = SPATIAL_ROWS + CHANNEL_ROWS
UNITS = 8  # pairs whose products do not wait for one another


class Bands(NamedTuple):
    """How communication takes the blocks: `rows` rows in all heads at once, with `halo` rows above and below them."""

    rows: int
    halo: int

    def padded(self, blocks: tuple[int, int]) -> int:
        """The number of a map's blocks with the halos around them."""
        return (blocks[0] + 2 * self.halo) * blocks[1]


def bands_of(blocks: tuple[int, int], heads: int) -> Bands:
    """The bands of a map with so many rows and columns of blocks: as many rows as the matrix units take at once."""
    rows, columns = blocks
    if heads * rows * columns <= 2 * LANES:
        return Bands(rows, 0)
    fitting = [r for r in range(1, rows + 1) if rows % r == 0 and heads * (r + 2) * columns <= LANES]
    return Bands(max(fitting, default=1), 1)


def cdc_matrix(blocks: tuple[int, int], heads: int, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution of a band of blocks with `kernel` [3, 3, s, t] as a matrix that multiplies from the left.

    Rows: (head t, row, column) of the blocks in the band. Columns: (head s, row, column) of those in it and its halos.
    """
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


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a Ripieno lies. heads: in each of its two groups."""

    tiles: Tiles
    heads: int
    group: int  # channels of all heads
    dtype: Any

    @property
    def per_head(self) -> int:
        return self.group // self.heads

    @property
    def blocks(self) -> tuple[int, int]:
        """Their rows and columns."""
        return self.tiles.rows // self.tiles.fold, self.tiles.columns

    @property
    def count(self) -> int:
        """The number of blocks."""
        return self.blocks[0] * self.blocks[1]

    @property
    def pairs(self) -> int:
        """Pairs of heads."""
        return max(1, self.heads // 2)

    @property
    def units(self) -> int:
        """How many times each pair of heads is there: once in a block; with one head, once in two blocks."""
        return self.count if self.heads > 1 else self.count // 2

    @property
    def bands(self) -> Bands:
        return bands_of(self.blocks, self.heads)

    @property
    def band_size(self) -> int:
        """Blocks of a head in a band."""
        return self.bands.rows * self.tiles.columns

    @property
    def in_word(self) -> int:
        """Positions in a word."""
        return words.per_word(self.dtype)

    @property
    def tile_words(self) -> int:
        """Words that hold a tile's positions."""
        return self.tiles.pixels // self.in_word

    @property
    def word_rows(self) -> int:
        """The tiles of a pair's first member, each a row of every word of features."""
        return self.tiles.count if self.heads > 1 else self.tiles.count // 2

    @property
    def feature_stride(self) -> int:
        return words.stride_to_read(self.word_rows)

    @property
    def logit_stride(self) -> int:
        return words.stride_to_read(LOGITS)

    @property
    def weight_stride(self) -> int:
        return words.stride_to_read(self.heads * self.count)

    @property
    def attended_stride(self) -> int:
        return words.stride_to_write(self.units)

    def members(self, pair: int) -> list[tuple[int, int]]:
        """(head, first unit among the blocks) of the two members of a pair."""
        return [(2 * pair + m, 0) if self.heads > 1 else (0, m * self.units) for m in range(2)]


class Scratch(NamedTuple):
    """What a Ripieno keeps in VMEM: references in its kernel, and (shape, type) outside of it."""

    query_weights: Any  # [4 G, C], a row for each output channel
    key_weights: Any  # [8 G, C], those of the values behind
    channel_weights: Any  # [2, G, C], of the queries and keys whose channels attend to each other
    scales: Any  # [2, G, N]: 1 / the norms of these queries and keys over the positions of each block
    features: Any  # words of queries, keys and values of each pair [3 pairs, words of a tile x stride, 128]
    logits: Any  # [heads x padded blocks x stride, 128]
    weights: Any  # words of exponentials [words of a map x stride, 128]: one word of all maps, then the next, ...
    largest: Any  # [heads x blocks, 128]: the largest logits between channels
    attended: Any  # words of the attended channels of each pair [pairs, words of a block x stride, 128]
    staged: Any  # words for the next products: [8 x pairs, words, 128]


def scratch_of(layout: Layout, channels: int) -> Scratch:
    """(shape, type) of what `Scratch` has. channels: of the features."""
    in_word, group, pairs, dtype = layout.in_word, layout.group, layout.pairs, layout.dtype
    maps = layout.heads * layout.count
    around = layout.heads * layout.bands.padded(layout.blocks)
    return Scratch(
        ((4 * group, channels), dtype),
        ((8 * group, channels), dtype),
        ((2, group, channels), dtype),
        ((2, group, layout.tiles.count), jnp.float32),
        ((3 * pairs, layout.tile_words * layout.feature_stride, LANES), jnp.int32),
        ((around * layout.logit_stride, LANES), jnp.float32),
        ((LOGITS // in_word * layout.weight_stride, LANES), jnp.int32),
        ((maps, LANES), jnp.float32),
        ((pairs, POSITIONS // in_word * layout.attended_stride + 8, LANES), jnp.int32),
        ((UNITS * pairs, (POSITIONS + LANES) // in_word, LANES), jnp.int32),
    )


def lane_numbers() -> tuple[jax.Array, jax.Array]:
    """The number and the slot of each lane, [1, 128] each."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return lane, jax.lax.div(lane, jnp.int32(SLOT))


def used_by_channels(layout: Layout) -> jax.Array:
    """[1, 128], whether a lane holds a channel of the group whose channels attend to each other."""
    lane, slot = lane_numbers()
    return ((slot & 1) == 1) & ((lane & (SLOT - 1)) < layout.per_head)


def features_of(layout: Layout, scratch: Scratch, kind: int, pair: int, unit) -> jax.Array:
    """The words of a pair's queries (kind 0), keys (1) or values (2): [64 / positions in a word, 128]."""
    tiles = layout.tiles
    row, column = jax.lax.div(unit, jnp.int32(tiles.columns)), jax.lax.rem(unit, jnp.int32(tiles.columns))
    own = scratch.features.at[kind * layout.pairs + pair]
    starts = [(row * tiles.fold + f) * tiles.columns + column for f in range(tiles.fold)]
    found = [words.read(own, start, layout.tile_words, layout.feature_stride) for start in starts]
    return jnp.concatenate(found, axis=0)


def for_each_pair(layout: Layout, scratch: Scratch, prepare: Callable, finish: Callable) -> None:
    """Call finish(pair, unit, ahead) for all; meanwhile prepare(pair, unit, ahead) fills `ahead` for the next ones."""
    last = layout.units // UNITS - 1

    @pl.loop(0, layout.units // UNITS + 1)
    def _(n):
        for step, function in ((jnp.maximum(n - 1, 0), finish), (jnp.minimum(n, last), prepare)):
            for number in range(UNITS * layout.pairs):
                unit, pair = divmod(number, layout.pairs)
                function(pair, step * UNITS + unit, scratch.staged.at[number])
