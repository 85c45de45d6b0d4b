"""Pointwise projections, and the derivative of their kernel in the form that costs least."""

import math

import jax
import jax.numpy as jnp

from concertormer_jax.ops.memory import in_memory_of_its_own


def _contract(a, a_axis, b, b_axis, dtype=None):
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


@jax.custom_vjp
def project(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """features [..., I] @ kernel [I, O].

    The automatic derivative by the kernel puts the gradient first into its product, which a CPU then transposes for
    every projection; here the features come first, whose transposed copy serves all projections of the same features.
    """
    return features @ kernel


def _forward(features, kernel):
    return features @ kernel, (features, kernel)


def _backward(saved, gradient):
    features, kernel = saved
    rows = math.prod(features.shape[:-1])
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel_gradient = _contract(features.reshape(rows, -1), 0, gradient.reshape(rows, -1), 0, wide)
    return gradient @ kernel.T, kernel_gradient.astype(kernel.dtype)


project.defvjp(_forward, _backward)


@jax.custom_vjp
def project_channels_first(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """`project` with the output channels as the first axis: features [..., I], kernel [I, O] to [O, ...].

    All three products, the derivatives' as well, read and write the layouts that they are given.
    """
    return _channels_first(features, kernel)


def _channels_first(features, kernel):
    rows = in_memory_of_its_own(kernel.T)  # a CPU multiplies them as they lie, columns it would copy together
    return _contract(rows, 1, features.reshape(-1, features.shape[-1]), 1).reshape(-1, *features.shape[:-1])


def _channels_first_forward(features, kernel):
    return _channels_first(features, kernel), (features, kernel)


def _channels_first_backward(saved, gradient):
    features, kernel = saved
    gradient = gradient.reshape(gradient.shape[0], -1)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel_gradient = _contract(gradient, 1, features.reshape(-1, features.shape[-1]), 0, wide)
    # XLA would make the transposition a part of the product, and on a CPU has no such product of bfloat16.
    kernel_gradient = jax.lax.optimization_barrier(kernel_gradient).T
    return _contract(gradient, 0, kernel, 1).reshape(features.shape), kernel_gradient.astype(kernel.dtype)


project_channels_first.defvjp(_channels_first_forward, _channels_first_backward)
