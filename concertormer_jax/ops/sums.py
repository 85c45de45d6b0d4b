"""Sums over a short axis, in the form that a CPU serves best."""

from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.ops.platforms import on_platform


@partial(jax.jit, static_argnums=1)
def sum_over(array: jax.Array, axis: int) -> jax.Array:
    """The sum over the last axis or the last but one (-1 or -2), in float32 or the type of `array` if that is wider.

    XLA on a CPU takes all that stands around a sum, matrix products too, into one loop with it, which is slow; a
    product with ones stays by itself.
    """
    wide = jnp.promote_types(array.dtype, jnp.float32)

    def by_product(array):
        axes = {-1: "...ab,b->...a", -2: "...ab,a->...b"}[axis]
        ones = jnp.ones(array.shape[axis], array.dtype)
        return jnp.einsum(axes, array, ones, preferred_element_type=wide, precision="highest")

    return on_platform(array, cpu=by_product, default=partial(jnp.sum, axis=axis, dtype=wide))
