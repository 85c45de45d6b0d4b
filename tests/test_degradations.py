"""Camera shake: the kernel, the blur and the noise."""

import numpy as np
import pytest
import scipy.ndimage

from concertormer_jax.data.degradations import CameraShake, correlated, encoded, rasterised, shake_path
from concertormer_jax.data.images import list_images, read_rgb

QUIET = CameraShake(shot_noise=0, read_noise=0)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2))


@pytest.mark.parametrize("length", [0.0, 0.4, 7.3, 20.0])
def test_kernel_sums_to_one_and_is_centred(length):
    shake = CameraShake(min_length_px=length, max_length_px=length)
    offsets = np.arange(-shake.margin_px, shake.margin_px + 1)
    for seed in range(50):
        kernel = shake.kernel(np.random.default_rng(seed))
        assert kernel.shape == (2 * shake.margin_px + 1,) * 2
        assert kernel.min() >= 0
        assert abs(kernel.sum() - 1) < 1e-5
        assert abs(kernel.sum(1) @ offsets) < 1e-4
        assert abs(kernel.sum(0) @ offsets) < 1e-4


def test_path_has_the_length_asked_for():
    for seed in range(20):
        path = shake_path(12.0, np.random.default_rng(seed))
        assert abs(np.linalg.norm(path, axis=1).max() - 6) < 1e-9
        np.testing.assert_allclose(path.mean(0), 0, atol=1e-9)


def test_point_is_shared_among_its_neighbours():
    kernel = rasterised(np.array([[0.25, -0.5]]), 1)
    np.testing.assert_allclose(kernel, [[0, 0, 0], [0.375, 0.375, 0], [0.125, 0.125, 0]], atol=1e-7)


@pytest.mark.parametrize("shape", [(41, 37, 3), (24, 50, 1)])
def test_correlation_equals_the_direct_sum(shape):
    rng = np.random.default_rng(0)
    image, kernel = rng.random(shape, np.float32), rng.random((9, 9), np.float32)
    direct = scipy.ndimage.correlate(image.astype(np.float64), kernel[:, :, None].astype(np.float64))[4:-4, 4:-4]
    np.testing.assert_allclose(correlated(image, kernel), direct, rtol=1e-5)


def test_blur_stays_aligned_with_the_sharp_picture():
    """A symmetric blob's centroid does not move, since the kernel's is in the middle (in linear light)."""
    margin = QUIET.margin_px
    size = 41 + 2 * margin
    across = np.arange(size) - size // 2
    light = np.exp(-(across[:, None] ** 2 + across**2) / 18)
    sharp = encoded(np.repeat(light[:, :, None], 3, axis=2).astype(np.float32))
    for seed in range(10):
        linear = ((QUIET(sharp, np.random.default_rng(seed))[:, :, 0] / 255 + 0.055) / 1.055) ** 2.4
        inner = across[margin:-margin]
        linear = np.where(linear > 0.003, linear, 0)
        assert abs(linear.sum(1) @ inner / linear.sum()) < 0.2
        assert abs(linear.sum(0) @ inner / linear.sum()) < 0.2


@pytest.mark.parametrize("value", [0, 1, 7, 128, 254, 255])
def test_constant_picture_stays_constant_without_noise(value):
    side = 30 + 2 * QUIET.margin_px
    blurred = QUIET(np.full((side, side + 5, 3), value, np.uint8), np.random.default_rng(0))
    assert blurred.shape == (30, 35, 3)
    assert blurred.dtype == np.uint8
    np.testing.assert_array_equal(blurred, value)


def test_noise_has_the_stated_size_and_no_bias():
    shake = CameraShake()
    sharp = np.full((200, 200, 3), 128, np.uint8)
    deviations = [np.std(shake(sharp, np.random.default_rng(seed)).astype(float)) for seed in range(20)]
    linear = ((128 / 255 + 0.055) / 1.055) ** 2.4
    slope = 255 * 1.055 / 2.4 * linear ** (1 / 2.4 - 1)  # of the sRGB curve there
    largest = slope * np.sqrt(shake.shot_noise * linear + shake.read_noise**2)
    assert 0.6 * largest < max(deviations) < 1.1 * largest
    assert min(deviations) < 0.5 * largest
    assert abs(shake(sharp, np.random.default_rng(0)).mean() - 128) < 0.1


def test_blur_is_applied_in_linear_light():
    """Fine black and white stripes blur to the grey of half the light (188), not to half the value (128)."""
    sharp = np.zeros((80, 80, 3), np.uint8)
    sharp[:, ::2] = 255
    shake = CameraShake(min_length_px=20, max_length_px=20, shot_noise=0, read_noise=0)
    means = [shake(sharp, np.random.default_rng(seed)).mean() for seed in range(10)]
    assert np.median(means) == pytest.approx(188, abs=3)


def test_same_generator_same_bytes():
    sharp = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    first, again, other = (CameraShake()(sharp, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_blur_of_the_bundled_photographs_is_as_strong_as_of_real_video(request):
    """20 to 27 dB, as between the blurred and sharp frames of GoPro."""
    shake, rng = CameraShake(), np.random.default_rng(0)
    margin = shake.margin_px
    values = []
    for path in list_images(request.config.rootpath / "photos" / "test"):
        sharp = read_rgb(path)
        values.append(psnr(shake(sharp, rng), sharp[margin:-margin, margin:-margin]))
    assert len(values) >= 6
    assert 20 < np.mean(values) < 27
    assert max(values) < 32


def test_bad_settings_and_too_small_pictures_are_refused():
    with pytest.raises(ValueError, match="min_length_px"):
        CameraShake(min_length_px=5, max_length_px=4)
    with pytest.raises(ValueError, match="noise"):
        CameraShake(read_noise=-1)
    with pytest.raises(ValueError, match="margin"):
        QUIET(np.zeros((8, 80, 3), np.uint8), np.random.default_rng(0))
