"""Features in tiles: the layout of the kernels, with the tiles of a map side by side on a TPU's lanes.

A map [H, W, C] becomes [P, C, N]: N tiles of P pixels, both row by row. Pixels are matrices [C, N] then, whose
products need no transposition: a projection multiplies them from the left, what attends across blocks contracts lanes.
The neighbour of a pixel is another matrix, but at a tile's border, where it is the same matrix moved by some lanes.

Tiles are the attention's blocks, or the upper and lower halves of these where the blocks do not fill the lanes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.tpu.kernels.words import interpreted

LANES = 128
BLOCK = 8  # pixels, the side of a block
HALF = BLOCK // 2  # by which a shifted block is moved
VMEM_BYTES = 100 * 2**20  # of the 128 MiB of a core


class Tiles(NamedTuple):
    """Of a map: their rows and columns, and the rows of pixels in each; they are `BLOCK` pixels wide."""

    rows: int
    columns: int
    height: int

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        return self.height * BLOCK

    @property
    def fold(self) -> int:
        """Tiles in a block."""
        return BLOCK // self.height


def tiles_of(height: int, width: int) -> Tiles | None:
    """The tiles of a map of height x width pixels, None where none fit the lanes."""
    columns = width // BLOCK
    if height % BLOCK or width % BLOCK or LANES % columns:
        return None
    for tile in (BLOCK, HALF):
        if (height // tile) * columns % LANES == 0:
            return Tiles(height // tile, columns, tile)
    return None


def enter(tiles: Tiles, features: jax.Array) -> jax.Array:
    """[H, W, C] to [P, C, N]."""
    cut = features.reshape(tiles.rows, tiles.height, tiles.columns, BLOCK, -1)
    return cut.transpose(1, 3, 4, 0, 2).reshape(tiles.pixels, -1, tiles.count)


def leave(tiles: Tiles, features: jax.Array) -> jax.Array:
    """The inverse of `enter`."""
    cut = features.reshape(tiles.height, BLOCK, -1, tiles.rows, tiles.columns)
    return cut.transpose(3, 0, 4, 1, 2).reshape(tiles.rows * tiles.height, tiles.columns * BLOCK, -1)


def call(kernel, outputs, *inputs, scalars=(), scratch=(), aliases=None, name):
    """`kernel`(*scalars, *inputs, *outputs, *scratch), all in VMEM but the scalars, which are int32 [k] in SMEM."""
    specs = [pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars)
    specs += [pl.BlockSpec(memory_space=pltpu.VMEM)] * len(inputs)
    return pl.pallas_call(
        kernel,
        out_shape=[pltpu.VMEM(shape, dtype) for shape, dtype in outputs],
        in_specs=specs,
        out_specs=[pl.BlockSpec(memory_space=pltpu.VMEM)] * len(outputs),
        scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in scratch],
        input_output_aliases=aliases or {},
        interpret=interpreted(),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name=name,
    )(*scalars, *inputs)


def dot(a: jax.Array, b: jax.Array, over: tuple[int, int] = (1, 0)) -> jax.Array:
    """The product of matrices, contracted over these axes, in float32."""
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def roll(features: jax.Array, lanes: int) -> jax.Array:
    """Move the last axis of a matrix by `lanes` to the right, or to the left where negative, circularly."""
    return pltpu.roll(features, lanes % features.shape[-1], 1)
