"""Validation while training counts every held-out image once, whatever the devices."""

import numpy as np
import pytest

from concertormer_jax.data.folders import Pair
from concertormer_jax.data.sources import PairSource
from concertormer_jax.metrics.psnr_ssim import psnr_rgb
from concertormer_jax.runtime.devices import data_mesh
from concertormer_jax.training.validation import Validation, middle_crop


class Pictures(PairSource):
    """Pairs of noise that need no files; the noise of the input grows with the index."""

    def __init__(self, count):
        super().__init__([Pair(str(index), None, None) for index in range(count)])

    def whole(self, index):
        rng = np.random.default_rng(index)
        target = rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        noise = rng.integers(-5 * index - 1, 5 * index + 2, target.shape)
        return np.clip(target + noise, 0, 255).astype(np.uint8), target


def identity(params, images):
    return (images,)


UNCACHED = {"fingerprint": None, "log": lambda line: None}


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_mean_over_all_images_on_eight_devices(count):
    source = Pictures(count)
    validation = Validation(identity, source, data_mesh(), images=100, crop_px=16, **UNCACHED)
    psnr, pictures = validation({}, 2)
    crops = [tuple(middle_crop(image, 16) for image in source.whole(index)) for index in range(count)]
    expected = np.mean([psnr_rgb(degraded, target) for degraded, target in crops])
    assert psnr == pytest.approx(expected, abs=1e-4)
    assert validation.input_psnr == pytest.approx(expected, abs=1e-6)
    assert len(pictures) == min(2, count)
    for (degraded, output, target), (expected_input, expected_target) in zip(pictures, crops, strict=False):
        np.testing.assert_array_equal(degraded, expected_input)
        np.testing.assert_array_equal(output, expected_input)
        np.testing.assert_array_equal(target, expected_target)


def test_chosen_images_are_spread_evenly():
    validation = Validation(identity, Pictures(9), data_mesh(), images=3, crop_px=16, **UNCACHED)
    assert len(validation) == 3
    _, pictures = validation({}, 3)
    for index, (_, _, target) in zip((0, 4, 8), pictures, strict=True):
        np.testing.assert_array_equal(target, middle_crop(Pictures(9).whole(index)[1], 16))


def test_small_picture_is_reflected_up_to_the_crop():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    crop = middle_crop(picture, 4)
    np.testing.assert_array_equal(crop, picture[[0, 1, 0, 1]][:, [0, 1, 2, 1]])
