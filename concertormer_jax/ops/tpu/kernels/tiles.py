"""Features in tiles: the layout of the kernels, with the tiles of a map side by side on a TPU's lanes.

A map [H, W, C] becomes [P, C, N]: N tiles of P pixels, both row by row. The pixel at one place in all tiles is a matrix
[C, N]. A projection multiplies it from the left, and attention across blocks contracts its lanes, so that neither needs
a transposition. The neighbours of these pixels are another such matrix, moved by some lanes where they lie in the next
tile.

A tile is a block of the attention; where the blocks of a map fill only half of the lanes, the upper or lower half of
one.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.reference import SMALLEST_SQUARED_NORM
from concertormer_jax.ops.tpu.kernels.words import interpreted

LANES = 128
ROWS = 8  # sublanes of a register
AT_ONCE = 4  # products that keep the four matrix units of a v5e busy
BLOCK = 8  # pixels, the side of a block
HALF = BLOCK // 2  # by which a shifted block is moved
VMEM_BYTES = 100 * 2**20  # of the 128 MiB of a core, for what a kernel keeps
SPILLS = 4 * 2**20  # bytes of VMEM in which the compiler may keep registers


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of a map, each of height x `BLOCK` pixels."""

    rows: int  # of tiles
    columns: int
    height: int

    @property
    def count(self) -> int:
        """N."""
        return self.rows * self.columns

    @property
    def parts(self) -> int:
        """The tiles in parts of 128, which fill the lanes."""
        return self.count // LANES

    @property
    def chunks(self) -> list[tuple[range, slice]]:
        """The parts in groups of at most AT_ONCE, with the lanes of each group."""
        firsts = range(0, self.parts, AT_ONCE)
        groups = [range(first, min(first + AT_ONCE, self.parts)) for first in firsts]
        return [(group, slice(group.start * LANES, group.stop * LANES)) for group in groups]

    @property
    def pixels(self) -> int:
        """P."""
        return self.height * BLOCK

    @property
    def fold(self) -> int:
        """Tiles in a block."""
        return BLOCK // self.height


def tiles_of(height: int, width: int, channels: int, hidden: int, heads: int, dtype) -> Tiles | None:
    """The tiles of a stage on maps [height, width, channels]; None where the kernels cannot take them.

    hidden: channels of the attention's result, in four groups of `heads` heads each.
    """
    columns = width // BLOCK
    per_head, rest = divmod(hidden, 4 * heads)
    served = not (height % BLOCK or width % BLOCK or LANES % columns or per_head % 8 or channels % 16 or rest)
    if not served or per_head > 24 or (heads > 1 and heads % 2) or hidden // 4 > LANES:
        return None
    tiles = Tiles(height // BLOCK, columns, BLOCK)
    if heads > 1 and 2 * tiles.count == LANES:
        tiles = Tiles(height // HALF, columns, HALF)
    fills = tiles.count % (LANES if heads > 1 else 2 * LANES) == 0
    return tiles if fills and vmem_bytes(tiles, heads, dtype) <= VMEM_BYTES else None


def vmem_bytes(tiles: Tiles, heads: int, dtype) -> int:
    """About what the attention inside blocks keeps at once, which takes most. See `ripieno_layout.Scratch`."""
    size = jnp.dtype(dtype).itemsize
    features = 4 * LANES // 2 * BLOCK**2 * size  # of a head in a block: queries, keys, values, and what attends
    maps = LANES * (56 * 4 + 48 * size)  # of both groups: logits in float32, and their exponentials
    return heads * tiles.pixels * tiles.count // BLOCK**2 * (features + maps)


def backward_bytes(tiles: Tiles, hidden: int, dtype) -> int:
    """About what the derivatives of the MLP keep at once, which take most: two maps, and all that goes in and out."""
    maps = hidden * tiles.pixels * tiles.count
    return maps * (2 * 4 + 7 * jnp.dtype(dtype).itemsize // 2)


def call(kernel, outputs, *inputs, scalars=(), scratch=(), name):
    """Run kernel(*scalars, *inputs, *outputs, *scratch) and return the outputs, which are arrays.

    All lie in VMEM but the scalars, int32 [k], in SMEM. outputs, scratch: (shape, type) of each.
    """
    specs = [pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars)
    specs += [pl.BlockSpec(memory_space=pltpu.VMEM)] * len(inputs)
    if not interpreted():  # otherwise each kernel would get a copy of its own
        inputs = [pltpu.with_memory_space_constraint(array, pltpu.VMEM) for array in inputs]
    return pl.pallas_call(
        kernel,
        out_shape=[pltpu.VMEM(shape, dtype) for shape, dtype in outputs],
        in_specs=specs,
        out_specs=[pl.BlockSpec(memory_space=pltpu.VMEM)] * len(outputs),
        scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in scratch],
        interpret=interpreted(),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=SPILLS + sum(_bytes(*each) for each in scratch)),
        name=name,
    )(*scalars, *inputs)


def _bytes(shape, dtype):
    """The size in VMEM, where matrices are padded to 128 columns, and to 16 rows of two bytes or 8 rows of four."""
    size = jnp.dtype(dtype).itemsize
    *matrices, rows, columns = shape
    rows_of_tile = 32 // size
    return math.prod(matrices) * -(-rows // rows_of_tile) * rows_of_tile * -(-columns // LANES) * LANES * size


def dot(a: jax.Array, b: jax.Array, over: tuple[int, int] = (1, 0)) -> jax.Array:
    """The product of two matrices in float32. over: the axis of a and that of b which are contracted."""
    if interpreted():  # XLA in JAX 0.12 has no product of bfloat16 with a float32 result on CPUs
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def inverse_norm(squared: jax.Array) -> jax.Array:
    """1 / the root of a sum of squares, bounded as in `ops.reference.normalise`."""
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


def roll(features: jax.Array, lanes: int) -> jax.Array:
    """Move the last axis of a matrix by `lanes` to the right, or to the left where negative, circularly."""
    return pltpu.roll(features, lanes % features.shape[-1], 1)
