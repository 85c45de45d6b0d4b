"""The convolutions written out as shifted sums equal XLA's, in value and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.convolution import (
    communicate_by_matrices,
    communicate_by_taps,
    communicate_over_blocks,
    convolve_by_projection,
    depthwise_3x3,
)


def draw(*shape):
    return jax.random.normal(jax.random.key(len(shape)), shape)


def convolve(features, kernel, groups=1):
    """Cross-correlation with zero padding. features: [B, H, W, C]; kernel: [3, 3, C / groups, D]."""
    return jax.lax.conv_general_dilated(
        features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def assert_same_function(ours, reference, *arguments):
    """Equal values, and equal gradients of an arbitrary weighted sum of the values."""
    expected = reference(*arguments)
    np.testing.assert_allclose(ours(*arguments), expected, atol=1e-5)
    weight = jnp.cos(jnp.arange(expected.size)).reshape(expected.shape)

    def gradients(function):
        return jax.jit(jax.grad(lambda *a: jnp.sum(function(*a) * weight), argnums=(0, 1)))(*arguments)

    for gradient, expected in zip(gradients(ours), gradients(reference), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_depthwise(size):
    def reference(features, kernel):
        return convolve(features, kernel[:, :, None], groups=6)

    assert_same_function(depthwise_3x3, reference, draw(2, *size, 6), draw(3, 3, 6))


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_to_few_channels(size):
    assert_same_function(convolve_by_projection, convolve, draw(2, *size, 6), draw(3, 3, 6, 3))


@pytest.mark.parametrize("communicate", [communicate_by_taps, communicate_by_matrices, communicate_over_blocks])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (1, 1)])
def test_communication_over_blocks(communicate, heads, grid):
    def reference(logits, kernel):
        maps = jnp.moveaxis(logits, (4, 5), (1, 2))
        result = convolve(maps.reshape(-1, *maps.shape[3:]), kernel)
        return jnp.moveaxis(result.reshape(maps.shape), (1, 2), (4, 5))

    def ours(logits, kernel):
        return communicate(logits, kernel).reshape(logits.shape)

    assert_same_function(ours, reference, draw(2, *grid, heads, 5, 2), draw(3, 3, heads, heads))


def test_depthwise_in_bfloat16_accumulates_the_kernel_gradient_in_float32():
    features = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: depthwise_3x3(features, kernel).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[1, 1, 0] == 64 * 64  # one by one in bfloat16, the sum would stop at 256
