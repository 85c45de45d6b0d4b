"""The gated MLP: in strips of rows it is what it is on the whole map, and so are its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops import gdmlp, reference

WIDTH, HIDDEN = 3, 6


def given(rows, attended):
    shapes = ((WIDTH, 2 * HIDDEN), (3, 3, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, WIDTH))
    maps = [(2, rows, 5, channels) for channels in (WIDTH, WIDTH, HIDDEN)]
    residual, x, there, *kernels = (
        jax.random.normal(jax.random.key(number), shape) for number, shape in enumerate([*maps, *shapes])
    )
    if not attended:
        there = kernels[2] = None
    return residual, x, there, reference.MLPWeights(*kernels)


@pytest.mark.parametrize("attended", [True, False])
@pytest.mark.parametrize("rows", [16, 24, 40, 7, 17])  # strips of 16, 12, 10, 7 and 1
def test_strips_make_the_whole(rows, attended):
    arguments = given(rows, attended)
    whole = gdmlp.whole(*arguments)
    for function in (gdmlp.in_strips, gdmlp.gated_mlp):
        result = jax.jit(function)(*arguments)
        np.testing.assert_allclose(result, whole, rtol=1e-5, atol=2e-5)


def test_the_formula_at_one_pixel():
    """residual + ((attended to_hidden + depthwise(u)) z) to_output, with zeros around the map."""
    residual, x, there, weights = given(16, attended=True)
    u, z = np.split(np.asarray(x[0, :2, :2]) @ np.asarray(weights.to_uz), 2, axis=-1)
    around = sum(u[row, column] * weights.depthwise[row + 1, column + 1] for row in (0, 1) for column in (0, 1))
    expected = residual[0, 0, 0] + ((there[0, 0, 0] @ weights.to_hidden + around) * z[0, 0]) @ weights.to_output
    result = gdmlp.gated_mlp(residual, x, there, weights)[0, 0, 0]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attended", [True, False])
def test_derivatives_are_those_of_the_strips(attended):
    arguments = given(24, attended)

    def gradients(function):
        return jax.jit(jax.grad(lambda arguments: jnp.sum(jnp.sin(function(*arguments)))))(arguments)

    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(jnp.abs(plain).max())),
        gradients(gdmlp.gated_mlp),
        gradients(gdmlp.in_strips),
    )
