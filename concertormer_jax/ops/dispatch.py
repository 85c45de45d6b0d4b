"""Sums over a short axis, in the form that a CPU serves best."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

# Operations in the form that the platform they run on serves best.

# The platform ("cpu", "gpu", "tpu") that is traced for, where it is not this process's own: `with traced_for("tpu"):`.
traced_for = jax.make_user_context(default_value=None)


def on_platform(*arguments, default: Callable, **forms: Callable):
    """Call the one of `forms`, named by platform, for the platform that is traced for, or `default`.

    All forms compute the same. Unlike `jax.lax.platform_dependent` it traces only one of them, as tracing is slow; a
    program that is traced for one platform and compiled for another is right, but not as fast as it could be.
    """
    return forms.get(traced_for.value or jax.default_backend(), default)(*arguments)


# Small parameters, kept out of the loops that use them on a CPU.


def in_memory_of_its_own(parameter: jax.Array) -> jax.Array:
    """`parameter` itself.

    Where blocks are scanned, their parameters are stacked. XLA on a CPU fuses the choice of a block's own into the loop
    that uses them, which then takes two to twenty times as long; only what it does not fuse, such as a product of
    matrices, comes before the loop.
    """
    return on_platform(parameter, cpu=_copied, default=lambda parameter: parameter)


def _copied(parameter):
    rows = parameter.reshape(-1, parameter.shape[-1])
    copy = jnp.matmul(jnp.eye(len(rows), dtype=rows.dtype), rows, precision="highest")
    return copy.reshape(parameter.shape)


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
