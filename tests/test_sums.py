"""Sums by products with ones are sums, in value and derivative, and add in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.dispatch import sum_over, traced_for


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("axis", [-1, -2])
def test_sum(platform, axis):
    array = jax.random.normal(jax.random.key(0), (2, 3, 5, 7))
    weight = jax.random.normal(jax.random.key(1), jnp.sum(array, axis=axis).shape)
    with traced_for(platform):
        value, gradient = jax.value_and_grad(lambda a: jnp.sum(sum_over(a, axis) * weight))(array)
        np.testing.assert_allclose(sum_over(array, axis), array.sum(axis=axis), atol=1e-5)
    assert value == pytest.approx(float(jnp.sum(array.sum(axis=axis) * weight)), abs=1e-4)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(jnp.expand_dims(weight, axis), array.shape), atol=1e-6)


@pytest.mark.parametrize("axis", [-1, -2])
def test_bfloat16_is_added_in_float32(axis):
    total = sum_over(jnp.ones((1, 1000, 1000), jnp.bfloat16), axis)
    assert total.dtype == jnp.float32
    assert (total == 1000).all()  # in bfloat16 it would stop at 256
