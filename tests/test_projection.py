"""Pointwise projections equal the plain product, in value and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.ops.projection import project


def test_value_and_derivatives_are_those_of_the_product():
    features = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    kernel = jax.random.normal(jax.random.key(1), (5, 6))

    def gradients(function):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=(0, 1))(features, kernel)

    np.testing.assert_allclose(project(features, kernel), features @ kernel, rtol=1e-6)
    for ours, expected in zip(gradients(project), gradients(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_in_bfloat16_the_kernel_gradient_is_accumulated_in_float32():
    features = jnp.ones((64, 64, 1), jnp.bfloat16)
    kernel = jnp.zeros((1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: project(features, kernel).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[0, 0] == 64 * 64  # one by one in bfloat16, the sum would stop at 256
