"""Pointwise projections, and the derivative of their kernel in the form that costs least."""

import math
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import wide


def _contract(a, a_axis, b, b_axis, dtype=None):
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


@jax.custom_vjp
def project(features: Float[Array, "*shape C"], kernel: Float[Array, "C h"]) -> Float[Array, "*shape h"]:
    """features @ kernel.

    The automatic derivative by the kernel puts the gradient first into its product, which a CPU then transposes for
    every projection; here the features come first, whose transposed copy serves all projections of the same features.
    """
    return features @ kernel


def _forward(features, kernel):
    return features @ kernel, (features, kernel)


def _backward(saved, gradient):
    features, kernel = saved
    rows = math.prod(features.shape[:-1])
    kernel_gradient = _contract(features.reshape(rows, -1), 0, gradient.reshape(rows, -1), 0, wide(kernel))
    return gradient @ kernel.T, kernel_gradient.astype(kernel.dtype)


project.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project_channels_first(
    features: Float[Array, "*shape C"],
    kernel: Float[Array, "C h"],
    materialize: Callable[[Array], Array] = lambda kernel: kernel,
) -> Float[Array, " h *shape"]:
    """`project` with the output channels as the first axis.

    All three products, the derivatives' as well, read and write the layouts that they are given. materialize: what the
    transposed kernel passes through before its product, see `ops.cpu.workarounds`.
    """
    return _channels_first(features, kernel, materialize)


def _channels_first(features, kernel, materialize):
    rows = materialize(kernel.T)
    return _contract(rows, 1, features.reshape(-1, features.shape[-1]), 1).reshape(-1, *features.shape[:-1])


def _channels_first_forward(features, kernel, materialize):
    return _channels_first(features, kernel, materialize), (features, kernel)


def _channels_first_backward(_, saved, gradient):
    features, kernel = saved
    gradient = gradient.reshape(gradient.shape[0], -1)
    kernel_gradient = _contract(gradient, 1, features.reshape(-1, features.shape[-1]), 0, wide(kernel))
    # XLA would make the transposition a part of the product, and on a CPU has no such product of bfloat16.
    kernel_gradient = jax.lax.optimization_barrier(kernel_gradient).T
    return _contract(gradient, 0, kernel, 1).reshape(features.shape), kernel_gradient.astype(kernel.dtype)


project_channels_first.defvjp(_channels_first_forward, _channels_first_backward)
