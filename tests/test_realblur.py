"""RealBlur's alignment: what it undoes, what it does not count, and what happens when it fails."""

import math

import cv2
import numpy as np
import pytest

from concertormer_jax.data.images import read_rgb
from concertormer_jax.metrics import psnr_ssim, realblur


@pytest.fixture(scope="module")
def photo(request):
    return read_rgb(request.config.rootpath / "photos" / "test" / "sklearn_china.jpg")[100:260, 200:420]


def smooth(picture):
    return cv2.GaussianBlur(picture, (0, 0), 1.5)


def psnr(one, other):
    return 10 * math.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def test_a_shift_and_a_darker_exposure_are_undone(photo):
    photo = smooth(photo)  # so that interpolation does little
    moved = cv2.warpAffine(photo, np.float32([[1, 0, 2.3], [0, 1, -1.6]]), photo.shape[1::-1], flags=cv2.INTER_CUBIC)
    dark = np.rint(0.8 * moved).astype(np.uint8)
    pair = realblur.aligned(dark, photo)
    assert pair.converged
    assert psnr(dark, photo) < 20
    assert realblur.psnr_aligned(pair) > 33
    assert realblur.ssim_aligned(pair) > 0.97
    assert set(np.unique(pair.mask)) == {0, 1}
    assert 0.95 < pair.mask.mean() < 1, "two columns and two rows have no partner"
    assert not pair.restored[pair.mask == 0].any()
    assert not pair.target[pair.mask == 0].any()


def test_what_the_mask_leaves_out_does_not_count():
    rng = np.random.default_rng(0)
    target, restored = (rng.random((40, 50, 3), np.float32) for _ in range(2))
    mask = np.ones_like(target)
    mask[:, :20] = 0
    pair = realblur.Aligned(restored * mask, target * mask, mask, True)
    alone = realblur.Aligned(restored[:, 20:], target[:, 20:], mask[:, 20:], True)
    assert realblur.psnr_aligned(pair) == pytest.approx(realblur.psnr_aligned(alone), abs=1e-5)
    halved = realblur.Aligned(restored * mask, restored * mask, mask, True)
    assert realblur.ssim_aligned(halved) == pytest.approx(1)
    assert realblur.psnr_aligned(halved) == math.inf


def test_rsblur_clips_what_the_warp_overshoots():
    rng = np.random.default_rng(0)
    target = rng.random((40, 50, 3), np.float32)
    bright = realblur.Aligned(target + np.float32(0.2), target, np.ones_like(target), True)
    clipped = realblur.Aligned(np.minimum(bright.restored, 1), target, bright.mask, True)
    psnr, ssim = (psnr_ssim.ALIGNED_METRICS[name](bright) for name in ("psnr_rsblur", "ssim_rsblur"))
    assert psnr == realblur.psnr_aligned(clipped) > realblur.psnr_aligned(bright)
    assert ssim == realblur.ssim_aligned(clipped) != realblur.ssim_aligned(bright)


def test_the_outer_five_pixels_are_no_part_of_the_ssim():
    rng = np.random.default_rng(1)
    target = rng.random((60, 60, 3), np.float32)
    mask = np.ones_like(target)
    for changed, alike in (
        (2, False),
        (0, True),
    ):  # the window of 5 pixels reaches the change at column 2, or not at all
        restored = target.copy()
        restored[:, :changed] = 0
        value = realblur.ssim_aligned(realblur.Aligned(restored, target, mask, True))
        assert (value == pytest.approx(1, abs=1e-6)) == alike
    border_only = np.zeros_like(target)
    border_only[5:-5, 5:-5] = 1
    pair = realblur.Aligned(target, target, border_only, True)
    assert realblur.ssim_aligned(pair) == pytest.approx(1)


@pytest.mark.parametrize("size", [(64, 64), (20, 8), (1, 1)])
def test_failure_to_converge_is_said_and_leaves_the_picture_in_place(size):
    rng = np.random.default_rng(2)
    restored, target = (rng.integers(1, 256, (*size, 3), dtype=np.uint8) for _ in range(2))
    if size == (64, 64):
        restored = np.full_like(restored, 77)  # nothing to hold on to
    pair = realblur.aligned(restored, target)
    assert not pair.converged
    assert pair.mask.all()
    z, x = restored / 255, target / 255
    scaled = (x * z).sum() / (z * z).sum() * z
    np.testing.assert_allclose(pair.restored, scaled, atol=1e-5)
    assert math.isfinite(realblur.psnr_aligned(pair))
    assert math.isfinite(realblur.ssim_aligned(pair))


def test_a_homography_that_leaves_nothing_to_compare_counts_as_failure(monkeypatch, photo):
    away = np.float32([[1, 0, 1e4], [0, 1, 0], [0, 0, 1]])
    monkeypatch.setattr(cv2, "findTransformECC", lambda *_, **__: (0.9, away))
    pair = realblur.aligned(photo, photo)
    assert not pair.converged
    assert pair.mask.all()


def test_other_faults_of_opencv_are_not_taken_for_failure_to_converge(monkeypatch, photo):
    def broken(*_, **__):
        error = cv2.error("broken")
        error.code = cv2.Error.StsBadArg
        raise error

    monkeypatch.setattr(cv2, "findTransformECC", broken)
    with pytest.raises(cv2.error):
        realblur.aligned(photo, photo)


def test_black_pictures_are_scored():
    black = np.zeros((30, 30, 3), np.uint8)
    same = realblur.aligned(black, black)
    assert realblur.psnr_aligned(same) == math.inf
    assert realblur.ssim_aligned(same) == pytest.approx(1)
    assert math.isfinite(realblur.psnr_aligned(realblur.aligned(black, black + 9)))
