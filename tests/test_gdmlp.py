"""The gated MLP and its depthwise convolution by the reference. (The other forms: see test_implementations.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops import reference


def test_the_formula_at_one_pixel():
    """residual + ((attended to_hidden + depthwise(u)) z) to_output, with zeros around the map."""
    shapes = (2, 4, 5, 3), (2, 4, 5, 3), (2, 4, 5, 6), (3, 12), (3, 3, 6), (6, 6), (6, 3)
    residual, x, attended, *kernels = (
        jax.random.normal(jax.random.key(number), shape) for number, shape in enumerate(shapes)
    )
    weights = reference.MLPWeights(*kernels)
    u, z = np.split(np.asarray(x[0, :2, :2]) @ np.asarray(weights.to_uz), 2, axis=-1)
    around = sum(u[row, column] * weights.depthwise[row + 1, column + 1] for row in (0, 1) for column in (0, 1))
    hidden = (attended[0, 0, 0] @ weights.to_hidden + around) * z[0, 0]
    result = reference.gated_mlp(residual, x, attended, weights)[0, 0, 0]
    np.testing.assert_allclose(result, residual[0, 0, 0] + hidden @ weights.to_output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_convolutions_are_those_of_xla(size):
    def convolve(features, kernel, groups=1):
        return jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    features = jax.random.normal(jax.random.key(0), (2, *size, 6))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 6, 3))
    np.testing.assert_allclose(reference.conv3x3(features, kernel), convolve(features, kernel), atol=1e-5)
    depthwise = kernel[..., 0]
    expected = convolve(features, depthwise[:, :, None], groups=6)
    np.testing.assert_allclose(reference.depthwise_3x3(features, jnp.asarray(depthwise)), expected, atol=1e-5)
