"""The Ripieno: attention inside blocks, between their positions and between their channels (paper, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.ops.reference import MASK
from concertormer_jax.ops.tpu.kernels.ripieno_attend import attend, communicate, write_channels
from concertormer_jax.ops.tpu.kernels.ripieno_layout import (
    POSITIONS,
    SPATIAL_ROWS,
    Layout,
    Scratch,
    bands_of,
    scratch_of,
)
from concertormer_jax.ops.tpu.kernels.ripieno_logits import project, write_logits
from concertormer_jax.ops.tpu.kernels.tiles import BLOCK, LANES, Tiles, call


def ripieno(tiles: Tiles, x, y, to_q, to_kv, spatial_cdc, channel_cdc, heads, shifted, bounded):
    """The attended channels [P, 2 G, N] of `ripieno_spatial` and `ripieno_channel`, and sums [2 G, 128] of them.

    x, y: [P, C, N], normalised features that give the queries, and the keys and values; to_q: [C, 4 G], to_kv: [C, 8 G]
    as in AttentionWeights, the Ripieno being its groups 0 and 1; spatial_cdc, channel_cdc: `cdc_matrix`, with the
    temperatures in it. shifted: int32 [1], whether the shift's mask applies; bounded: int32 [2], whether exponentials
    of the logits of the two groups stay finite without a maximum taken first. The sum over the lanes of the sums is
    that over all pixels.
    """
    group = to_q.shape[1] // 4
    layout = Layout(tiles, heads, group, x.dtype)
    same = y is x

    def kernel(*refs):
        bounded, x, *refs = refs
        y, to_q, to_kv, spatial_cdc, channel_cdc, mask, out, sums, *scratch = (x, *refs) if same else refs
        scratch = Scratch(*scratch)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        project(layout, scratch, x, y, to_q, to_kv)
        write_logits(layout, scratch)
        communicate(layout, scratch, spatial_cdc, channel_cdc, mask, bounded)
        attend(layout, scratch)
        write_channels(layout, scratch, out, sums)

    outputs = [((tiles.pixels, 2 * group, tiles.count), x.dtype), ((2 * group, LANES), jnp.float32)]
    mask = MASK * shifted.astype(jnp.float32) * _across_border()
    features = (x,) if same else (x, y)
    inputs = (*features, to_q, to_kv, spatial_cdc.astype(x.dtype), channel_cdc.astype(x.dtype), mask)
    scratch = scratch_of(layout, x.shape[1])
    return call(kernel, outputs, *inputs, scalars=(bounded,), scratch=scratch, name="ripieno")


def cdc_matrix(blocks: tuple[int, int], heads: int, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution of a band of blocks with `kernel` [3, 3, s, t] as a matrix.

    Its rows are (head, row, column) of a block in the band, its columns those of a block in the band with its halos.
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


def _across_border() -> np.ndarray:
    """Pairs of positions on two sides of the right and the bottom border, where it passes through their block.

    [2, 32, 128] as the logits lie, two queries side by side.
    """
    second_half = np.arange(BLOCK) >= BLOCK // 2
    places = np.divmod(np.arange(POSITIONS), BLOCK)
    across = [second_half[place][:, None] != second_half[place] for place in places[::-1]]
    pairs = [np.concatenate([half[:SPATIAL_ROWS], half[SPATIAL_ROWS:]], axis=1) for half in across]
    return np.stack(pairs).astype(np.float32)
