"""How to keep XLA on a CPU from fusing what is faster apart: by products of matrices, which it never fuses."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import wide


def materialize(parameter: Float[Array, "*shape n"]) -> Float[Array, "*shape n"]:
    """`parameter` itself, in memory of its own: its product with the unit matrix.

    Where blocks are scanned, their parameters are stacked. XLA fuses the choice of a block's own parameters into the
    loops that use them, which makes these loops slow.
    """
    rows = parameter.reshape(-1, parameter.shape[-1])
    copy = jnp.matmul(jnp.eye(len(rows), dtype=rows.dtype), rows, precision="highest")
    return copy.reshape(parameter.shape)


@partial(jax.jit, static_argnums=1)
def sum_as_matmul(array: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The sum over the last axis or the last but one (-1 or -2), in float32 at least, as a product with ones.

    XLA would fuse a sum with all around it, matrix products too, into one slow loop.
    """
    axes = {-1: "...ab,b->...a", -2: "...ab,a->...b"}[axis]
    ones = jnp.ones(array.shape[axis], array.dtype)
    return jnp.einsum(axes, array, ones, preferred_element_type=wide(array), precision="highest")
