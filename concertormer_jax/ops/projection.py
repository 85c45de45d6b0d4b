"""Pointwise projections, and the derivative of their kernel in the form that costs least."""

import math

import jax
import jax.numpy as jnp


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
    kernel_gradient = jax.lax.dot_general(
        features.reshape(rows, -1),
        gradient.reshape(rows, -1),
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.promote_types(kernel.dtype, jnp.float32),
    )
    return gradient @ kernel.T, kernel_gradient.astype(kernel.dtype)


project.defvjp(_forward, _backward)
