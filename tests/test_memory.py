"""What keeps small parameters out of loops does nothing to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.dispatch import in_memory_of_its_own


def parameter(*shape):
    """Numbers of all magnitudes, and zero."""
    magnitudes, signs = jax.random.normal(jax.random.key(0), (2, *shape))
    return (jnp.sign(signs) * 10.0 ** (8 * magnitudes)).at[..., 0].set(0)


@pytest.mark.parametrize("shape", [(5,), (3, 3, 6), (4, 2), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_parameter_bit_for_bit(shape, dtype):
    given = parameter(*shape).astype(dtype)
    for function in (in_memory_of_its_own, jax.jit(in_memory_of_its_own)):
        result = function(given)
        assert (result.shape, result.dtype) == (given.shape, given.dtype)
        assert np.asarray(result).tobytes() == np.asarray(given).tobytes()


def test_of_stacked_parameters_each_is_its_own():
    stacked = parameter(4, 3, 3, 6)
    _, scanned = jax.lax.scan(lambda carry, one: (carry, in_memory_of_its_own(one)), 0, stacked)
    np.testing.assert_array_equal(scanned, stacked)


@pytest.mark.parametrize("shape", [(5,), (3, 3, 6), (4, 2)])
def test_the_derivative_passes_unchanged(shape):
    given, weight = parameter(*shape), parameter(*shape)[::-1]
    gradient = jax.jit(jax.grad(lambda given: jnp.sum(weight * in_memory_of_its_own(given))))(given)
    np.testing.assert_array_equal(gradient, weight)
