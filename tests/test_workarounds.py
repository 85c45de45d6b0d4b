"""`materialize` changes nothing but the compiled program, and that it does change."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.cpu.workarounds import materialize
from concertormer_jax.ops.shared.taps import depthwise_3x3


@pytest.mark.parametrize("shape", [(5,), (3, 3, 6), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_parameter_bit_for_bit(shape, dtype):
    magnitudes, signs = jax.random.normal(jax.random.key(0), (2, *shape))
    given = (jnp.sign(signs) * 10.0 ** (8 * magnitudes)).at[..., 0].set(0).astype(dtype)
    result = jax.jit(materialize)(given)
    assert (result.shape, result.dtype) == (given.shape, given.dtype)
    assert np.asarray(result).tobytes() == np.asarray(given).tobytes()


@pytest.mark.parametrize("shape", [(4, 1), (3, 3, 1, 1), (3, 3, 2, 2)])
def test_its_product_has_no_single_row_or_column(shape):
    (product,) = [
        equation for equation in jax.make_jaxpr(materialize)(jnp.ones(shape)).eqns if "dot" in str(equation.primitive)
    ]
    assert min(product.outvars[0].aval.shape) > 1


def chosen_inside_the_loop(materialize) -> bool:
    """Whether the loop over the pixels, in a scan over four stacked kernels, takes the stack in place of one kernel."""

    def stage(x, kernels):
        return jax.lax.scan(lambda x, kernel: (depthwise_3x3(x, kernel, materialize), None), x, kernels)[0]

    program = jax.jit(stage).lower(jnp.zeros((1, 8, 8, 6)), jnp.zeros((4, 3, 3, 6))).compile().as_text()
    fusions = [part for part in re.split(r"\n(?=%|ENTRY)", program) if part.startswith("%fused_computation")]
    return any("f32[4,3,3,6]" in fusion and "f32[1,8,8,6]" in fusion for fusion in fusions)


def test_the_choice_of_a_blocks_parameters_is_kept_out_of_the_loop_that_uses_them():
    assert chosen_inside_the_loop(lambda kernel: kernel), "XLA no longer needs `materialize`: remove it"
    assert not chosen_inside_the_loop(materialize)
