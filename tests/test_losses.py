"""The training loss, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import random_images

from concertormer_jax.training.losses import l1_fft, multiscale_l1_fft


def expected_l1_fft(output, target):
    """Of one image: the modulus of the complex difference, in an unnormalised transform over height and width."""
    difference = np.asarray(output, np.float64) - target
    return np.abs(difference).mean() + 0.1 * np.abs(np.fft.rfft2(difference, axes=(0, 1))).mean()


def mean_of_2x2(image, down, right, factor):
    """The mean of the central 2x2 of one cell."""
    top, left = down * factor + factor // 2 - 1, right * factor + factor // 2 - 1
    return image[top : top + 2, left : left + 2].mean(axis=(0, 1))


def reduced(image, factor):
    height, width, _ = image.shape
    return np.array(
        [[mean_of_2x2(image, i, j, factor) for j in range(width // factor)] for i in range(height // factor)]
    )


def test_of_a_constant_difference():
    output, target = jnp.full((1, 4, 6, 3), 0.75), jnp.full((1, 4, 6, 3), 0.5)
    # The spectrum is 24 * 0.25 at frequency zero and 0 at the other 15 of 4 x 4.
    np.testing.assert_allclose(l1_fft(output, target), 0.25 + 0.1 * 24 * 0.25 / 16, rtol=1e-6)
    np.testing.assert_allclose(l1_fft(output, target, fft_weight=0.0), 0.25, rtol=1e-6)


def test_without_a_weight_there_is_no_spectrum():
    images = jnp.zeros((1, 8, 8, 3))
    programs = [
        str(jax.make_jaxpr(lambda *a, w=w: multiscale_l1_fft([a[0]], a[1], w))(images, images)) for w in (0.1, 0.0)
    ]
    assert ["fft" in program for program in programs] == [True, False]


def test_is_the_mean_over_the_batch():
    outputs, targets = random_images(3, 8, 5, 3), random_images(4, 8, 5, 3)[1:]
    expected = np.mean([expected_l1_fft(*pair) for pair in zip(outputs, targets, strict=True)])
    np.testing.assert_allclose(l1_fft(outputs, targets), expected, rtol=1e-5)


def test_every_scale_counts_once_with_the_target_reduced_to_it():
    target = random_images(1, 32, 64, 3)
    shapes = [(1, 8, 16, 3), (1, 16, 32, 3), (1, 32, 64, 3)]
    outputs = [random_images(*shape) * 2 - 1 for shape in shapes]
    expected = (
        expected_l1_fft(outputs[0][0], reduced(target[0], 4))
        + expected_l1_fft(outputs[1][0], reduced(target[0], 2))
        + expected_l1_fft(outputs[2][0], target[0])
    )
    np.testing.assert_allclose(multiscale_l1_fft(outputs, target), expected, rtol=1e-5)


def test_the_target_is_padded_for_the_coarse_outputs():
    target = random_images(1, 5, 7, 3)
    outputs = [random_images(1, 8, 8, 3), random_images(1, 5, 7, 3) ** 2]
    padded = np.pad(target[0], ((0, 11), (0, 9), (0, 0)), mode="reflect")
    expected = expected_l1_fft(outputs[0][0], reduced(padded, 2)) + expected_l1_fft(outputs[1][0], target[0])
    np.testing.assert_allclose(multiscale_l1_fft(outputs, target), expected, rtol=1e-5)


def test_the_target_is_padded_as_far_as_the_network_pads():
    """A network whose blocks are large pads further than to the next multiple of 16."""
    target = random_images(1, 16, 24, 3)
    outputs = [random_images(1, 16, 16, 3), random_images(1, 16, 24, 3) ** 2]
    padded = np.pad(target[0], ((0, 16), (0, 8), (0, 0)), mode="reflect")
    expected = expected_l1_fft(outputs[0][0], reduced(padded, 2)) + expected_l1_fft(outputs[1][0], target[0])
    np.testing.assert_allclose(multiscale_l1_fft(outputs, target), expected, rtol=1e-5)


def test_bfloat16_outputs_are_compared_in_float32():
    output, target = jnp.full((1, 8, 8, 3), 0.5, jnp.bfloat16), jnp.full((1, 8, 8, 3), 0.5001)
    loss = l1_fft(output, target, fft_weight=0.0)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 1e-4, rtol=1e-2)


def test_a_perfect_output_has_no_loss_and_a_finite_gradient():
    target = jnp.asarray(random_images(1, 16, 16, 3))
    loss, gradient = jax.value_and_grad(lambda output: multiscale_l1_fft([output], target))(target)
    assert loss == 0
    assert np.isfinite(gradient).all()


def test_a_target_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"the finest output has the shape \(1, 8, 8, 3\), the target \(1, 8, 9, 3\)"):
        multiscale_l1_fft([jnp.zeros((1, 8, 8, 3))], jnp.zeros((1, 8, 9, 3)))
