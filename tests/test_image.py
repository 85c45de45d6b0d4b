"""Resizing, padding and rearranging, against rules written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.image import downsample, pad_to_multiple, padded_size, pixel_shuffle, pixel_unshuffle


def draw(*shape):
    return np.asarray(jax.random.uniform(jax.random.key(0), shape))


def bilinear(image, factor):
    """Sample [H, W, C] at the centres of the output's pixels, in half-pixel coordinates."""
    height, width, channels = image.shape
    result = np.zeros((height // factor, width // factor, channels))
    for row in range(height // factor):
        for column in range(width // factor):
            y, x = (row + 0.5) * factor - 0.5, (column + 0.5) * factor - 0.5
            for near_y in (int(y), int(y) + 1):
                for near_x in (int(x), int(x) + 1):
                    share = (1 - abs(y - near_y)) * (1 - abs(x - near_x))
                    result[row, column] += share * image[near_y, near_x]
    return result


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downsample_is_bilinear_without_antialiasing(factor):
    images = draw(2, 16, 24, 3)
    expected = np.stack([bilinear(image, factor) for image in images])
    np.testing.assert_allclose(downsample(images, factor), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "factor"), [((16, 16), 0), ((16, 16), 1), ((15, 15), 3), ((12, 16), 8), ((16, 12), 8)]
)
def test_downsample_refuses_other_factors(size, factor):
    with pytest.raises(ValueError, match=f"factor={factor} must be even and divide"):
        downsample(jnp.zeros((1, *size, 3)), factor)


def test_pixel_shuffle_has_pytorchs_channel_order():
    features = draw(2, 3, 5, 8)
    shuffled = pixel_shuffle(features, 2)
    assert shuffled.shape == (2, 6, 10, 2)
    for channel in range(2):
        for down in range(2):
            for right in range(2):
                np.testing.assert_array_equal(
                    shuffled[:, down::2, right::2, channel], features[..., channel * 4 + down * 2 + right]
                )


def test_pixel_unshuffle_is_the_inverse_of_pixel_shuffle():
    features = draw(2, 3, 5, 8)
    np.testing.assert_array_equal(pixel_unshuffle(pixel_shuffle(features, 2), 2), features)


@pytest.mark.parametrize(("size", "expected"), [(1, 16), (16, 16), (17, 32)])
def test_padded_size(size, expected):
    assert padded_size(size, 16) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 13), (16, 20)])
def test_padding_is_numpys_reflection_at_the_bottom_and_the_right(size):
    images = draw(2, *size, 3)
    padding = [(0, 0), (0, -size[0] % 16), (0, -size[1] % 16), (0, 0)]
    np.testing.assert_array_equal(pad_to_multiple(images, 16), np.pad(images, padding, mode="reflect"))


def test_padding_reflects_repeatedly_and_does_not_double_the_border():
    row = pad_to_multiple(jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1), 8)
    np.testing.assert_array_equal(row[0, :, :, 0], np.tile([1, 2, 3, 2, 1, 2, 3, 2], (8, 1)))


def test_an_image_of_the_right_size_is_not_padded():
    images = draw(1, 16, 32, 3)
    np.testing.assert_array_equal(pad_to_multiple(images, 16), images)
