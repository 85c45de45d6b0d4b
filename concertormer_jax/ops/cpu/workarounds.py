"""How to keep XLA on a CPU from fusing what is faster apart: by a product of matrices, which it never fuses."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def materialize(parameter: Float[Array, "*shape n"]) -> Float[Array, "*shape n"]:
    """`parameter` itself, in memory of its own: its product, as a matrix about square, with the unit matrix.

    Where blocks are scanned, their parameters are stacked. XLA fuses the choice of a block's own parameters into the
    loops that use them, which makes these loops slow. (It compiles a product with a single row or column anew wherever
    there is one.)
    """
    count = next(count for count in range(math.isqrt(parameter.size), 0, -1) if parameter.size % count == 0)
    copy = jnp.matmul(jnp.eye(count, dtype=parameter.dtype), parameter.reshape(count, -1), precision="highest")
    return copy.reshape(parameter.shape)
