"""Features in tiles: the layout of the kernels, with the tiles of a map side by side on a TPU's lanes.

A map [H, W, C] becomes [P, C, N]: N tiles of P pixels, both row by row. Pixels are matrices [C, N] then, whose
products need no transposition: a projection multiplies them from the left, what attends across blocks contracts lanes.
The neighbour of a pixel is another matrix, but at a tile's border, where it is the same matrix moved by some lanes.

Tiles are the attention's blocks, or the upper and lower halves of these where the blocks fill half of the lanes.
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
SPILLS = 4 * 2**20  # bytes, for registers


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Of a map: their rows and columns, and the rows of pixels in each; they are `BLOCK` pixels wide."""

    rows: int
    columns: int
    height: int

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def parts(self) -> int:
        """Of 128 tiles, which fill the lanes."""
        return self.count // LANES

    @property
    def pixels(self) -> int:
        return self.height * BLOCK

    @property
    def fold(self) -> int:
        """Tiles in a block."""
        return BLOCK // self.height


def tiles_of(height: int, width: int, channels: int, hidden: int, heads: int, dtype) -> Tiles | None:
    """The tiles of a stage whose maps have so many pixels and channels, None where the kernels cannot take them.

    hidden: channels of the attention's result, in four groups with `heads` heads each.
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
    return tiles if fills and vmem_bytes(tiles, hidden, dtype) <= VMEM_BYTES else None


def vmem_bytes(tiles: Tiles, hidden: int, dtype) -> int:
    """About what the attention inside blocks, which takes most, keeps at once."""
    pixels = tiles.pixels * tiles.count
    size = jnp.dtype(dtype).itemsize
    features = hidden * pixels * size * 5 // 2  # padded queries, keys and values, and what has been attended
    maps = hidden // 96 * pixels * (56 * 4 + 24 * 2 * size) * LANES // 64  # of positions and channels, padded
    return features + maps


def backward_bytes(tiles: Tiles, hidden: int, dtype) -> int:
    """About what the derivatives of the MLP, which take most, keep at once: two maps, and all that goes in and out."""
    maps = hidden * tiles.pixels * tiles.count
    return maps * (2 * 4 + 7 * jnp.dtype(dtype).itemsize // 2)


def call(kernel, outputs, *inputs, scalars=(), scratch=(), name):
    """`kernel`(*scalars, *inputs, *outputs, *scratch), all in VMEM but the scalars, which are int32 [k] in SMEM.

    outputs, scratch: (shape, type) of each.
    """
    specs = [pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars)
    specs += [pl.BlockSpec(memory_space=pltpu.VMEM)] * len(inputs)
    if not interpreted():  # else each kernel would have a copy of its own
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
    """In VMEM, where matrices have multiples of 128 columns, and of 16 rows of two bytes or 8 of four."""
    size = jnp.dtype(dtype).itemsize
    *matrices, rows, columns = shape
    rows_of_tile = 32 // size
    return math.prod(matrices) * -(-rows // rows_of_tile) * rows_of_tile * -(-columns // LANES) * LANES * size


def dot(a: jax.Array, b: jax.Array, over: tuple[int, int] = (1, 0)) -> jax.Array:
    """The product of matrices, contracted over these axes, in float32."""
    if interpreted():  # XLA of JAX 0.12 has no product of bfloat16 in float32 on CPUs
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def inverse_norm(squared: jax.Array) -> jax.Array:
    """1 / the root of sums of squares, as `ops.reference.normalise` has it."""
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


def roll(features: jax.Array, lanes: int) -> jax.Array:
    """Move the last axis of a matrix by `lanes` to the right, or to the left where negative, circularly."""
    return pltpu.roll(features, lanes % features.shape[-1], 1)
