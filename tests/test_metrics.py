"""The metrics against stored reference values, and at the edges of their domain."""

import itertools
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from concertormer_jax.metrics import psnr_ssim, realblur
from concertormer_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


ROUNDED = psnr_ssim.ROUNDED_METRICS
OF_ARRAYS = [name for name in psnr_ssim.METRICS if name not in psnr_ssim.PERCEPTUAL_METRICS]
# The alignment depends on OpenCV's version and on the processor's instructions. What is stored is of OpenCV 5, which
# gives it for p0 and p2 within 1e-6 dB and 5e-7 with and without AVX2; 4.12 to 4.14 do within 0.0011 dB and 5e-5.
# For p1, where the alignment hardly settles, all of these lie within 0.034 dB and 0.0013.
SETTLED = {"psnr_realblur": 1e-4, "ssim_realblur": 1e-5}
if int(cv2.__version__.split(".")[0]) < 5:
    SETTLED = {"psnr_realblur": 2e-3, "ssim_realblur": 1e-4}
TOLERANCE = {"p0": SETTLED, "p1": {"psnr_realblur": 5e-2, "ssim_realblur": 2e-3}, "p2": SETTLED}


def golden(pair):
    with np.load(GOLDEN) as archive:
        return (
            archive[f"{pair}/restored"],
            archive[f"{pair}/target"],
            json.loads(str(archive["expected"]))[pair],
        )


@pytest.mark.parametrize("pair", ["p0", "p1", "p2"])
def test_matches_the_reference_values(pair):
    restored, target, expected = golden(pair)
    values, converged = psnr_ssim.score(list(expected), restored, target)
    assert converged
    assert set(expected) | {"psnr_y_float", "ssim_y_float"} == {*ROUNDED, *TOLERANCE[pair]}
    for name, value in values.items():
        assert type(value) is float
        assert value == pytest.approx(expected[name], abs=TOLERANCE[pair].get(name, 1e-6)), name


def test_unrounded_metrics_see_what_rounding_hides_and_the_others_do_not():
    restored, target, expected = golden("p0")
    shifted = restored.astype(np.float32) + np.float32(0.4)
    shifted = np.where(restored == 255, 255, shifted).astype(np.float32)
    values = psnr_ssim.score(OF_ARRAYS, shifted, target).values
    for name in expected:
        assert values[name] == pytest.approx(expected[name], abs=TOLERANCE["p0"].get(name, 1e-6)), name
    mean_squared_error = np.mean((shifted.astype(np.float64) - target) ** 2)
    assert values["psnr_rgb_unrounded"] == pytest.approx(10 * math.log10(255**2 / mean_squared_error), abs=1e-9)
    assert abs(values["psnr_rgb_unrounded"] - values["psnr_rgb"]) > 1e-3
    assert 0 < abs(values["ssim_rgb_3d_unrounded"] - values["ssim_rgb_3d"]) < 0.01
    whole = psnr_ssim.score(OF_ARRAYS, restored.astype(np.float32), target).values
    assert whole["psnr_rgb_unrounded"] == pytest.approx(expected["psnr_rgb"], abs=1e-6)
    assert whole["ssim_rgb_3d_unrounded"] == pytest.approx(expected["ssim_rgb_3d"], abs=1e-6)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    restored, target, _ = golden("p0")
    calls = []
    monkeypatch.setattr(psnr_ssim, "aligned", lambda *images: calls.append(1) or realblur.aligned(*images))
    assert psnr_ssim.score(["psnr_rgb", "ssim_y"], restored, target).converged is None
    assert not calls
    assert psnr_ssim.score(["psnr_realblur", "ssim_realblur"], restored, target).converged
    assert len(calls) == 1, "both metrics share the alignment"


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 13, 3), (11, 11, 3), (10, 40, 3), (40, 10, 3)])
def test_equal_pictures_of_any_size_are_perfect_and_different_ones_are_not(shape):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 200, shape, dtype=np.uint8)
    other = picture + generator.integers(1, 50, shape, dtype=np.uint8)
    for name, function in ROUNDED.items():
        perfect = math.inf if name.startswith("psnr") else 1.0
        assert function(picture, picture) == perfect
        assert math.isfinite(function(other, picture))
        assert function(other, picture) < perfect


def test_psnr_has_a_fixed_peak():
    dark = np.zeros((8, 8, 3), np.uint8)
    assert psnr_ssim.psnr_rgb(dark + 1, dark) == pytest.approx(20 * math.log10(255))
    assert psnr_ssim.psnr_rgb(dark, dark + 1) == pytest.approx(20 * math.log10(255))


def test_2d_ssim_repeats_the_border_only_along_an_axis_that_is_too_short():
    generator = np.random.default_rng(1)
    target = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    restored = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    # Eleven equal rows have one valid row position, which sees what a single, repeated row does.
    row = psnr_ssim.ssim_rgb_2d(restored[:1], target[:1])
    tall = psnr_ssim.ssim_rgb_2d(np.repeat(restored[:1], 11, axis=0), np.repeat(target[:1], 11, axis=0))
    assert row == pytest.approx(tall, abs=1e-12)


def test_2d_ssim_of_the_smallest_picture_that_holds_the_window_is_that_of_its_one_position():
    generator = np.random.default_rng(1)
    restored, target = (generator.integers(0, 256, (11, 11, 3), dtype=np.uint8) for _ in range(2))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(np.moveaxis(restored.astype(float), 2, 0), np.moveaxis(target.astype(float), 2, 0), strict=True):
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 2.55**2) / (mean_x**2 + mean_y**2 + 2.55**2)
        values.append(luminance * (2 * covariance + 7.65**2) / (variance_x + variance_y + 7.65**2))
    assert psnr_ssim.ssim_rgb_2d(restored, target) == pytest.approx(np.mean(values), abs=1e-12)


def test_luma_is_matlabs_in_range_and_rounding():
    picture = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert psnr_ssim.luma(picture).tolist() == [[16, 235, 81, 145, 41]]
    # 65481 R + 128553 G + 24966 B = 127500 modulo 255000: an exact half, which goes up.
    tie = next(
        colour
        for colour in itertools.product(range(256), repeat=3)
        if np.dot(colour, (65481, 128553, 24966)) % 255000 == 127500
    )
    exact = 16 + np.dot(tie, (65481, 128553, 24966)) / 255000
    assert psnr_ssim.luma(np.array([[tie]], np.uint8))[0, 0] == exact + 0.5


@pytest.mark.parametrize(
    ("restored", "target"),
    [
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint16)),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)),
        (np.zeros((1, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)),
    ],
)
def test_other_types_and_shapes_are_refused(restored, target):
    for function in ROUNDED.values():
        with pytest.raises(ValueError, match=r"uint8 array|differ in shape"):
            function(restored, target)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.int32), np.zeros((4, 5, 3), np.float32), [[0]]])
def test_unrounded_metrics_take_floats_and_bytes_alone(wrong):
    target = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 or float array|differ in shape"):
        psnr_ssim.score(["psnr_rgb"], wrong, target)
    with pytest.raises(ValueError, match="target must be a uint8 array"):
        psnr_ssim.psnr_rgb_unrounded(target, target.astype(np.float32))


def test_an_unknown_metric_is_refused_with_the_known_ones():
    assert psnr_ssim.require_known(["ssim_y", "psnr_realblur"]) == ("ssim_y", "psnr_realblur")
    with pytest.raises(UserError, match="'psnr'; known are psnr_rgb, ssim_rgb_3d, ssim_rgb_2d, psnr_y, ssim_y"):
        psnr_ssim.require_known(["psnr_rgb", "psnr"])
    with pytest.raises(UserError, match="no metric"):
        psnr_ssim.require_known([])
