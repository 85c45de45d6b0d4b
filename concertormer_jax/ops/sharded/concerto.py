"""Concerto self-attention of a picture whose rows lie on several devices.

Inside blocks every device attends for itself; CDC takes the logits of one row of blocks from each neighbour. Sums over
blocks or pixels are taken over the devices too: the logits and norms of the Concertino and of transposed attention, and
the means of SCA. Zeros in the padding rows add nothing to any of these sums, since no projection has a bias.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, across, partition, shift_of, unpartition
from concertormer_jax.ops.gpu import concerto as gpu
from concertormer_jax.ops.reference import CONCERTO, MASK, AttentionWeights
from concertormer_jax.ops.sharded.rows import RowShards
from concertormer_jax.ops.shared import attention
from concertormer_jax.ops.shared.attention import Channel, Kind, Spatial
from concertormer_jax.ops.shared.groups import Layout, mean_of_map
from concertormer_jax.ops.shared.taps import cdc_over_blocks


@dataclasses.dataclass(frozen=True)
class SummedSpatial(Spatial):
    """`Spatial` whose contracted axis lies on several devices."""

    axis: str

    def maps(self, a, b):
        """The products of every row of a with every row of b."""
        return jax.lax.psum(super().maps(a, b), self.axis)

    def sum(self, features):
        """Over the contracted axis K, to [..., A]."""
        return jax.lax.psum(super().sum(features), self.axis)


@dataclasses.dataclass(frozen=True)
class SummedChannel(Channel):
    """`Channel` whose contracted axis lies on several devices."""

    axis: str

    def maps(self, a, b):
        """The products of every column of a with every column of b in the same head."""
        return jax.lax.psum(super().maps(a, b), self.axis)

    def sum(self, features):
        """Over the contracted axis K, to [..., m, c]."""
        return jax.lax.psum(super().sum(features), self.axis)


@dataclasses.dataclass(frozen=True)
class RowsOfMap(gpu.WholeMap):
    """A feature map of which this device holds some rows, `grid` being their blocks."""

    rows: RowShards

    def split(self, features: Float[Array, "b H W C"], shifted: Bool[Array, ""] | bool) -> Float[Array, "b p n C"]:
        """`ops.blocks.split_blocks`, with zeros in the blocks of padding."""
        if shifted is not False:
            pixels = shift_of(self.grid, jnp.asarray(shifted))
            features = self.rows.moved_up(features, self.grid.size // 2, pixels)
        return partition(self.rows.masked(features), self.grid.size)

    def merge(self, blocks: Float[Array, "b p n C"], shifted: Bool[Array, ""] | bool) -> Float[Array, "b H W C"]:
        """`ops.blocks.merge_blocks`."""
        features = unpartition(blocks, self.grid)
        if shifted is False:
            return features
        return self.rows.moved_down(features, self.grid.size // 2, shift_of(self.grid, jnp.asarray(shifted)))

    def cdc_over_blocks(
        self, logits: Float[Array, "*shape"], kernel: Float[Array, "3 3 m m"]
    ) -> Float[Array, "*shape"]:
        """`shared.taps.cdc_over_blocks` over the blocks of the picture."""
        rows, columns, size = self.grid

        def convolution(maps):
            blocks = maps.reshape(len(maps), -1, *logits.shape[2:])
            return cdc_over_blocks(Grid(maps.shape[1], columns, size), blocks, kernel).reshape(maps.shape)

        maps = logits.reshape(len(logits), rows, columns, *logits.shape[2:])
        return self.rows.convolve(convolution, maps).reshape(logits.shape)

    def minus_mean(self, logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The logits minus their mean over the blocks of the picture."""
        blocks = self.rows.rows_of_picture(self.grid.rows) * self.grid.columns
        return logits - self.rows.sum(logits.sum(axis=1, keepdims=True)) / blocks

    def mask(self, logits: Float[Array, "*shape"], shifted: Bool[Array, ""] | bool) -> Float[Array, "*shape"]:
        """`shared.cdc.mask_maps` at the borders of the picture."""
        rows, columns, size = self.grid
        across_bottom, across_right = across(size)
        row = self.rows.first(rows) + jnp.arange(rows)
        last_row = (row == self.rows.rows_of_picture(rows) - 1)[:, None, None, None]
        last_column = (jnp.arange(columns) == columns - 1)[:, None, None]
        crosses = (last_row & across_bottom) | (last_column & across_right)
        crosses = crosses.reshape(rows * columns, 1, *across_bottom.shape)
        return jnp.where(crosses & shifted, logits + MASK, logits)

    def mean(self, layout: Layout, result: Float[Array, "..."]) -> Float[Array, "b mc"]:
        """The mean of a group's result over the picture. In the blocks of padding it is 0, as the values are."""
        return self.rows.sum(mean_of_map(layout, result)) * (self.rows.each / self.rows.total)

    def summed_over_blocks(self, kind: Kind) -> Kind:
        """The attention `kind`, with products that sum over the blocks of the whole picture."""
        if isinstance(kind, Channel):
            return SummedChannel(kind.arithmetic, kind.heads, self.rows.axis)
        return SummedSpatial(kind.arithmetic, self.rows.axis)


def concerto_attention(
    rows: RowShards,
    _: Callable,
    x: Float[Array, "b H W C"],
    y: Float[Array, "b H W D"],
    weights: AttentionWeights,
    shifted: Bool[Array, ""] | bool,
    *,
    heads: int,
    groups: Sequence[str] = CONCERTO,
    block: int = 8,
) -> Float[Array, "b H W h"]:
    """`ops.concerto.concerto_attention` of this device's rows."""
    grid = Grid(x.shape[1] // block, x.shape[2] // block, block)
    return gpu.attention_on(RowsOfMap(grid, rows), x, y, weights, shifted, heads, groups)


def transposed_attention(
    rows: RowShards,
    _: Callable,
    q: Float[Array, "b H W mc"],
    k: Float[Array, "b H W mc"],
    v: Float[Array, "b H W mc"],
    temperature: Float[Array, " m"],
) -> Float[Array, "b H W mc"]:
    """`ops.concerto.transposed_attention` of this device's rows."""
    kind = SummedSpatial(gpu.ARITHMETIC, rows.axis)
    return attention.transposed_attention(kind, rows.masked(q), rows.masked(k), v, temperature)
