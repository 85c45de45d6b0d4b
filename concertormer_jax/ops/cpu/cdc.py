"""The cross-dimensional communication (CDC) of a Ripieno on a CPU, a 3x3 convolution over the grid of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from concertormer_jax.ops.cpu.workarounds import materialize
from concertormer_jax.ops.shared.taps import taps_over_grid

FEW_COLUMNS = 8  # of blocks: as many or fewer make one product of a row


def over_grid(
    logits: Float[Array, "b rows columns m E F"], kernel: Float[Array, "3 3 m m"]
) -> Float[Array, "b rows columns m E F"]:
    """`taps_over_grid`; on grids of few columns, whose 9 m^2 multiply-adds take long to compile, as one product."""
    columns, heads = logits.shape[2:4]
    if heads > 1 and columns <= FEW_COLUMNS:
        return products_over_grid(logits, kernel)
    return taps_over_grid(logits, materialize(kernel))


@jax.jit
def products_over_grid(
    logits: Float[Array, "b rows columns m E F"], kernel: Float[Array, "3 3 m m"]
) -> Float[Array, "b rows columns m E F"]:
    """`taps_over_grid` as a product for each row of blocks: of a matrix with the maps of it and of the rows beside it.

    The matrix [columns m, 3 columns m] has the kernel in three diagonals of blocks.
    """
    batch, rows, columns, heads = logits.shape[:4]
    maps = logits.reshape(batch, rows, columns * heads, -1)
    padded = jnp.pad(maps, ((0, 0), (1, 1), (0, 0), (0, 0)))
    neighbours = jnp.concatenate([padded[:, down : down + rows] for down in range(3)], axis=2)
    neighbours = neighbours.reshape(batch * rows, 3 * columns * heads, -1)

    right = np.stack([np.eye(columns, k=1 - tap, dtype=kernel.dtype) for tap in range(3)])
    matrix = jnp.einsum("drst,rxy->ytdxs", kernel, right, precision="highest").reshape(columns * heads, -1)
    matrices = jnp.broadcast_to(matrix, (len(neighbours), *matrix.shape))
    return jnp.matmul(matrices, neighbours).reshape(logits.shape)
