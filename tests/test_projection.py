"""Pointwise projections equal the plain products, in value and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.shared.layers import project, project_channels_first


def plain_channels_first(features, kernel):
    return jnp.einsum("...i,io->o...", features, kernel)


@pytest.mark.parametrize(("ours", "plain"), [(project, jnp.matmul), (project_channels_first, plain_channels_first)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7, 5)])
def test_value_and_derivatives_are_those_of_the_product(ours, plain, shape):
    features = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (5, 6))

    def gradients(function):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=(0, 1))(features, kernel)

    np.testing.assert_allclose(ours(features, kernel), plain(features, kernel), rtol=1e-5, atol=1e-6)
    for gradient, expected in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("ours", [project, project_channels_first])
def test_in_bfloat16_the_kernel_gradient_is_accumulated_in_float32(ours):
    features = jnp.ones((64, 64, 1), jnp.bfloat16)
    kernel = jnp.zeros((1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: ours(features, kernel).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[0, 0] == 64 * 64  # one by one in bfloat16, the sum would stop at 256
