"""Where the Ripieno's features, logits and weights lie in VMEM.

Features lie in pairs: of two heads, or with a single head of two blocks, one in the upper and one in the lower half of
the map. The 64 positions of a pair are rows, and its channels are on the 128 lanes, in four slots of 32:

    0  member 0, spatial    1  member 0, channel    2  member 1, spatial    3  member 1, channel

In a spatial slot of the values the last eight are ones: what attends there are the sums of the weights.

Logits lie with two queries side by side: position p and p + 32, each with 64 keys, or channel c and c + 16, each with
the keys at their place in slot 1 or 3. Communication takes one row of all maps at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


@dataclasses.dataclass(frozen=True)
class Layout:
    """Of a Ripieno with so many heads and channels in each of its two groups."""

    tiles: Tiles
    heads: int
    group: int
    dtype: Any

    @property
    def per_head(self) -> int:
        return self.group // self.heads

    @property
    def blocks(self) -> tuple[int, int]:
        return self.tiles.rows // self.tiles.fold, self.tiles.columns

    @property
    def count(self) -> int:
        """Of blocks."""
        return self.blocks[0] * self.blocks[1]

    @property
    def pairs(self) -> int:
        """Pairs of heads."""
        return max(1, self.heads // 2)

    @property
    def units(self) -> int:
        """Blocks, or pairs of blocks, in each pair of heads."""
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
        """Words of a tile's positions."""
        return self.tiles.pixels // self.in_word

    @property
    def word_rows(self) -> int:
        """Tiles of a pair's first member: rows of each word of features."""
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
    """What a Ripieno keeps in VMEM: references in its kernel, (shape, type) outside of it."""

    query_weights: Any  # [4 G, C], a row for each output channel
    key_weights: Any  # [8 G, C], those of the values behind
    channel_weights: Any  # [2, G, C], of the queries and keys whose channels attend to each other
    scales: Any  # [2, G, N], of these: 1 / their norm over the positions of each block
    features: Any  # words of queries, keys and values of each pair [3 pairs, words of a tile x stride, 128]
    logits: Any  # [heads x padded blocks x stride, 128]
    weights: Any  # words of exponentials: a row of all maps after another
    largest: Any  # [heads x blocks, 128], logits between channels
    attended: Any  # words of what attends, for each pair [pairs, words of a block x stride, 128]
    staged: Any  # words for the products of a few pairs, prepared ahead


def scratch_of(layout: Layout, channels: int) -> Scratch:
    """Of features with so many channels."""
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
    """Of each lane [1, 128]: its number and its slot."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return lane, jax.lax.div(lane, jnp.int32(SLOT))


def used_by_channels(layout: Layout) -> jax.Array:
    """[1, 128], whether a lane has a channel of the group whose channels attend to each other."""
    lane, slot = lane_numbers()
    return ((slot & 1) == 1) & ((lane & (SLOT - 1)) < layout.per_head)


def features_of(layout: Layout, scratch: Scratch, kind: int, pair: int, unit) -> jax.Array:
    """The words of a pair's queries (kind 0), keys (1) or values (2) [64 / w, 128]."""
    tiles = layout.tiles
    row, column = jax.lax.div(unit, jnp.int32(tiles.columns)), jax.lax.rem(unit, jnp.int32(tiles.columns))
    own = scratch.features.at[kind * layout.pairs + pair]
    starts = [(row * tiles.fold + f) * tiles.columns + column for f in range(tiles.fold)]
    found = [words.read(own, start, layout.tile_words, layout.feature_stride) for start in starts]
    return jnp.concatenate(found, axis=0)


def for_each_pair(layout: Layout, scratch: Scratch, prepare: Callable, finish: Callable) -> None:
    """finish(pair, unit, ahead) for all, while prepare(pair, unit, ahead) fills `ahead` for those that follow."""
    last = layout.units // UNITS - 1

    @pl.loop(0, layout.units // UNITS + 1)
    def _(n):
        for step, function in ((jnp.maximum(n - 1, 0), finish), (jnp.minimum(n, last), prepare)):
            for number in range(UNITS * layout.pairs):
                unit, pair = divmod(number, layout.pairs)
                function(pair, step * UNITS + unit, scratch.staged.at[number])
