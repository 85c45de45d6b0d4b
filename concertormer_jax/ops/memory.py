"""Small parameters, kept out of the loops that use them on a CPU."""

import jax
import jax.numpy as jnp

from concertormer_jax.ops.platforms import on_platform


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
