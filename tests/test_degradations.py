"""Synthetic degradations: blur, rain, noise and JPEG, each what it says, and in the camera's order."""

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from concertormer_jax.commands.contact_sheet import main
from concertormer_jax.data import pipeline
from concertormer_jax.data.degrade import DEGRADATIONS, make_degradation
from concertormer_jax.data.degrade.benchmarks import Bicubic, GaussianNoise, imresize
from concertormer_jax.data.degrade.motion_blur import CameraShake, FrameAverage, correlated, rasterised, shake_path
from concertormer_jax.data.degrade.rain import Rain, streaks
from concertormer_jax.data.degrade.sensor import Camera, encoded, jpeg_coded, linear_values
from concertormer_jax.data.images import list_images, read_rgb
from concertormer_jax.data.sources import open_source
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.photos.sheets import SHOWN
from concertormer_jax.runtime.errors import UserError

STORED_EXACTLY = ("gaussian", "bicubic_x2", "bicubic_x4")
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
    with pytest.raises(ValueError, match="min_length_px"):
        FrameAverage(min_length_px=-1)
    with pytest.raises(ValueError, match="max_turn_px"):
        FrameAverage(max_turn_px=-1)
    with pytest.raises(ValueError, match="noise"):
        CameraShake(read_noise=-1)
    with pytest.raises(ValueError, match="streaks"):
        Rain(min_streaks=0)
    with pytest.raises(ValueError, match="veil"):
        Rain(max_veil=1)
    for quality in ((30,), (0, 50), (50, 101), (60, 50)):
        with pytest.raises(ValueError, match="jpeg_quality"):
            Camera(jpeg_quality=quality)
    with pytest.raises(ValueError, match="margin"):
        QUIET(np.zeros((8, 80, 3), np.uint8), np.random.default_rng(0))


def linear(values):
    return linear_values()[values]


@pytest.mark.parametrize("length", [0.0, 3.0, 14.0])
def test_frames_stay_within_the_margin(length):
    frames = FrameAverage(min_length_px=length, max_length_px=length, shot_noise=0, read_noise=0)
    light = np.random.default_rng(0).random((60, 70, 3), np.float32)
    light[[0, -1]] = light[:, [0, -1]] = np.nan
    for seed in range(20):
        averaged = frames.light(light, np.random.default_rng(seed))
        assert averaged.shape == (60 - 2 * frames.margin_px, 70 - 2 * frames.margin_px, 3)
        assert np.isfinite(averaged).all()


def test_the_middle_frame_is_the_sharp_picture():
    """A point of light is averaged over 7 to 13 places, one of which is its own."""
    frames = FrameAverage(min_length_px=14, max_length_px=14, max_turn_px=0, shot_noise=0, read_noise=0)
    margin = frames.margin_px
    light = np.zeros((41 + 2 * margin, 41 + 2 * margin, 3), np.float32)
    light[20 + margin, 20 + margin] = 1
    counts = set()
    for seed in range(40):
        averaged = frames.light(light, np.random.default_rng(seed))[:, :, 0]
        assert averaged.sum() == pytest.approx(1, abs=1e-4)
        share = averaged[20, 20]
        assert share >= 1 / 13 - 1e-6
        if abs(round(1 / share) - 1 / share) < 1e-3:  # no other frame stays nearer than a pixel
            counts.add(round(1 / share))
        places = np.argwhere(averaged > 1e-6) - 20
        assert np.linalg.norm(places, axis=1).max() < 7 + 1.5, "half a length, and a pixel for interpolation"
    assert counts == {7, 9, 11, 13}


def test_frames_before_and_after_the_sharp_one_lie_around_it():
    frames = FrameAverage(min_length_px=14, max_length_px=14, max_turn_px=0)
    margin = frames.margin_px
    light = np.zeros((31 + 2 * margin, 31 + 2 * margin, 3), np.float32)
    light[15 + margin, 15 + margin] = 1
    offsets = []
    for seed in range(40):
        averaged = frames.light(light, np.random.default_rng(seed))[:, :, 0]
        across = np.arange(31) - 15
        offsets.append(np.hypot(averaged.sum(0) @ across, averaged.sum(1) @ across))
    assert np.mean(offsets) < 2.2, "about the first frame they would lie 3.5 pixels to one side"


def test_frames_turn_about_the_middle():
    turning = FrameAverage(min_length_px=0, max_length_px=0, max_turn_px=6, shot_noise=0, read_noise=0)
    margin = turning.margin_px
    sharp = np.random.default_rng(0).integers(0, 256, (101 + 2 * margin, 101 + 2 * margin, 3), np.uint8)
    inner = sharp[margin:-margin, margin:-margin]
    change = np.zeros(inner.shape[:2])
    for seed in range(10):
        change += np.abs(turning(sharp, np.random.default_rng(seed)).astype(float) - inner).mean(axis=2)
    assert change[48:53, 48:53].mean() < 0.3 * change[:5, :5].mean()


@pytest.mark.parametrize("name", ["shake", "frames"])
def test_blurs_average_light_and_not_values(name):
    """Fine black and white stripes blur to the grey of half the light (188), not to half the value (128)."""
    sharp = np.zeros((90, 90, 3), np.uint8)
    sharp[:, ::2] = 255
    blur = make_degradation(name, min_length_px=20, max_length_px=20, shot_noise=0, read_noise=0)
    means = [linear(blur(sharp, np.random.default_rng(seed))).mean() for seed in range(10)]
    np.testing.assert_allclose(means, 0.5, atol=0.06)


def test_streaks_are_drawn_along_their_direction():
    def roughness(angle):
        field = streaks(
            (120, 130),
            0.004,
            length_px=24,
            width_px=0.6,
            angle=angle,
            opacities=(0.3, 0.6),
            rng=np.random.default_rng(0),
        )
        assert field.shape == (120, 130)
        assert field.min() >= 0
        assert 0.3 < field.max() < 1
        return [np.abs(np.diff(field, axis=axis)).mean() for axis in (0, 1)]

    down, across = roughness(0.0)
    assert down < 0.4 * across, "vertical streaks change little from row to row"
    down, across = roughness(np.pi / 2)
    assert across < 0.4 * down


def test_the_number_of_streaks_is_the_one_asked_for():
    few, many = (
        streaks(
            (300, 300), density, length_px=8, width_px=0.4, angle=0, opacities=(0.3, 0.31), rng=np.random.default_rng(1)
        )
        for density in (2e-4, 8e-4)
    )
    covered = [(-np.log1p(-field)).sum() for field in (few, many)]
    assert covered[1] / covered[0] == pytest.approx(4, rel=0.35)


def test_the_veil_takes_light_from_the_scene_and_adds_the_skys():
    """Without streaks the light that arrives is an affine function of the scene's, towards a sky of its brightness."""
    veiled = Rain(min_streaks=1e-9, max_streaks=1e-9, max_veil=0.5, shot_noise=0, read_noise=0)
    scene = np.random.default_rng(0).random((80, 80, 3), np.float32)
    slopes = []
    for seed in range(10):
        arrived = veiled.light(scene, np.random.default_rng(seed))
        slope, offset = np.polyfit(scene.ravel(), arrived.ravel(), 1)
        np.testing.assert_allclose(arrived, slope * scene + offset, atol=1e-5)
        sky = offset / (1 - slope)
        assert 0.58 < sky < 1
        slopes.append(slope)
    assert 0.5 <= min(slopes) < 0.7
    assert 0.85 < max(slopes) <= 1


def test_rain_adds_light_to_dark_scenes_and_streaks_hide_what_is_behind_them():
    rain = Rain(min_streaks=12, max_streaks=12, max_veil=0, shot_noise=0, read_noise=0)
    scene = np.full((100, 100, 3), 0.02, np.float32)
    scene[:5] = 0.9  # the sky
    wet = rain.light(scene, np.random.default_rng(0))
    below = wet[5:]
    assert (below >= 0.02 - 1e-6).all()
    assert below.max() > 0.2
    assert np.median(below) < 0.2, "most of the scene is seen"
    assert wet.max() <= 1


def test_rain_of_the_bundled_photographs_is_from_light_to_heavy(request):
    """From sparse streaks that hardly matter to a downpour."""
    values = {}
    for name, rain in (("light", Rain(max_streaks=0.5)), ("heavy", Rain(min_streaks=12))):
        photos = list_images(request.config.rootpath / "photos" / "test")
        values[name] = np.mean(
            [
                psnr(rain(photo, np.random.default_rng(seed)), photo)
                for seed, path in enumerate(photos)
                for photo in [read_rgb(path)[:300, :300]]
            ]
        )
    assert 23 < values["light"] < 33
    assert 12 < values["heavy"] < 19


def test_noise_comes_after_the_blur_and_is_not_blurred():
    shake = CameraShake(min_length_px=14, max_length_px=14, shot_noise=1e-2, read_noise=1e-2)
    side = 120 + 2 * shake.margin_px
    noisy = shake(np.full((side, side, 3), 128, np.uint8), np.random.default_rng(1)).astype(float) - 128
    assert noisy.std() > 3
    assert abs((noisy[:, 1:] * noisy[:, :-1]).mean() / noisy.var()) < 0.05


def test_jpeg_comes_after_the_noise():
    settings = {"shot_noise": 1e-2, "read_noise": 1e-2}
    flat = np.full((128, 128, 3), 128, np.uint8)
    noisy = Camera(**settings)(flat, np.random.default_rng(1)).std()
    stored = Camera(**settings, jpeg_quality=(5, 5))(flat, np.random.default_rng(1)).std()
    assert stored < 0.5 * noisy


def test_jpeg_keeps_place_and_size_and_loses_more_at_lower_quality(request):
    photo = read_rgb(list_images(request.config.rootpath / "photos" / "test")[0])[:101, :77]
    rng = np.random.default_rng(0)
    losses = [psnr(jpeg_coded(photo, (quality, quality), rng), photo) for quality in (95, 60, 25, 8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 35
    qualities = {psnr(jpeg_coded(photo, (10, 90), np.random.default_rng(seed)), photo) for seed in range(8)}
    assert max(qualities) - min(qualities) > 2


def test_the_grid_of_jpeg_blocks_has_no_fixed_place():
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    edges = set()
    for seed in range(12):
        coded = jpeg_coded(ramp, (1, 1), np.random.default_rng(seed)).astype(int)
        steps = np.abs(np.diff(coded[:, :, 0], axis=1)).mean(axis=0)
        edges.add(int(np.argmax(np.bincount(np.arange(len(steps)) % 8, steps))))
    assert len(edges) >= 3


@pytest.mark.parametrize("name", list(DEGRADATIONS))
def test_samples_depend_on_seed_and_position_alone(name, tmp_path):
    for number in range(2):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 256, (12, 12, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        np_path = tmp_path / "photos" / f"{number}.png"
        Image.fromarray(blocks).save(np_path)
    jpeg = {} if name in STORED_EXACTLY else {"jpeg_quality": (20, 80)}
    degradation = make_degradation(name, shot_noise=1e-3, **jpeg)

    def sample(seed, position):
        source = open_source(tmp_path / "photos", degradation=degradation)
        return pipeline.sample(source, seed, position, crop_px=32, flip=True, rotate=True)

    degraded, target = sample(3, 7)
    assert degraded.shape == target.shape == (32, 32, 3)
    assert np.any(degraded != target)
    for again, first in zip(sample(3, 7), (degraded, target), strict=True):
        np.testing.assert_array_equal(again, first)
    assert np.any(sample(4, 7)[0] != degraded)
    assert np.any(sample(3, 8)[0] != degraded)


def test_degradations_are_made_by_name():
    assert make_degradation("shake") == CameraShake()
    assert make_degradation("frames", min_length_px=1, max_length_px=2, jpeg_quality=[30, 40]) == FrameAverage(
        min_length_px=1, max_length_px=2, jpeg_quality=(30, 40)
    )
    assert make_degradation("rain", read_noise=0.5, max_length_px=3) == Rain(read_noise=0.5)
    assert type(make_degradation("noise")) is Camera
    with pytest.raises(UserError, match="degradation 'fog' is unknown; choose one of shake, frames, rain, noise"):
        make_degradation("fog")
    with pytest.raises(UserError, match="degradation 'rain': jpeg_quality"):
        make_degradation("rain", jpeg_quality=(3,))
    assert make_degradation("gaussian", sigma=[25, 25], shot_noise=1) == GaussianNoise((25, 25))
    assert make_degradation("bicubic_x4") == Bicubic(4)
    for name in STORED_EXACTLY:
        with pytest.raises(UserError, match=f"degradation '{name}' stores no JPEG"):
            make_degradation(f"noise,{name}", jpeg_quality=(30, 40))
    with pytest.raises(UserError, match="degradation 'gaussian': sigma"):
        make_degradation("gaussian", sigma=(3, 2))


def test_gaussian_noise_is_neither_clipped_nor_rounded():
    sharp = np.zeros((200, 200, 3), np.uint8)
    noisy = GaussianNoise((25, 25))(sharp, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    assert abs(noisy.mean()) < 0.5 and abs(noisy.std() - 25) < 0.5
    deviations = [GaussianNoise((10, 40))(sharp, np.random.default_rng(seed)).std() for seed in range(12)]
    assert 9 < min(deviations) < 20 and 30 < max(deviations) < 41


@pytest.mark.parametrize("scale", [1 / 2, 1 / 4, 2, 4])
def test_bicubic_is_that_of_pillow_inside_and_mirrors_the_borders(scale, request):
    """Pillow has the same cubic, but other borders."""
    photo = read_rgb(list_images(request.config.rootpath / "photos" / "test")[0])[:96, :64]
    size = round(96 * scale), round(64 * scale)
    resized = imresize(photo, scale)
    pillow = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BICUBIC))
    assert resized.shape == (*size, 3)
    rim = max(3, round(3 * scale))
    inside = (slice(rim, -rim),) * 2
    assert np.abs(resized.astype(int) - pillow)[inside].max() <= 1
    mirrored = imresize(np.pad(photo, ((32, 32), (32, 32), (0, 0)), mode="symmetric"), scale)
    margin = round(32 * scale)
    np.testing.assert_array_equal(mirrored[margin:-margin, margin:-margin], resized)


def test_bicubic_keeps_the_size_of_any_picture():
    sharp = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    small = imresize(sharp, 1 / 4)
    assert small.shape == (10, 13, 3)
    np.testing.assert_array_equal(Bicubic(4)(sharp), imresize(small, 4)[:37, :50])
    flat = np.full((13, 9, 3), 201, np.uint8)
    np.testing.assert_array_equal(Bicubic(2)(flat), flat)


def test_of_several_degradations_each_picture_gets_one_in_its_place():
    sharp = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    quiet = {"shot_noise": 0, "read_noise": 0, "min_length_px": 9, "max_length_px": 9}
    mixed = make_degradation("noise,shake,frames", **quiet)
    assert mixed.margin_px == make_degradation("frames", **quiet).margin_px
    rng, margin = np.random.default_rng(1), mixed.margin_px
    middle = sharp[margin:-margin, margin:-margin]
    results = [mixed(sharp, rng) for _ in range(60)]
    assert {result.shape for result in results} == {middle.shape}
    kept = sum(np.array_equal(result, middle) for result in results)
    assert 10 <= kept <= 30  # a third: "noise" without noise gives the picture itself


def test_pairs_are_synthesised_by_any_degradation(tmp_path, request):
    photo = read_rgb(list_images(request.config.rootpath / "photos" / "test")[0])[:80, :90]
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos" / "one.png")
    inputs = []
    for name in ("shake", "rain", "gaussian"):
        synthesize(tmp_path / "photos", tmp_path / name, degradation=name)
        np.testing.assert_array_equal(read_rgb(tmp_path / name / "target" / "one.png"), photo)
        inputs.append(read_rgb(tmp_path / name / "input" / "one.png"))
    assert np.any(inputs[0] != inputs[1])


def test_contact_sheet(tmp_path, request, capsys):
    photo = request.config.rootpath / "photos" / "test" / "sklearn_china.jpg"
    main([str(photo), str(tmp_path / "sheet.png")])
    sheet = read_rgb(tmp_path / "sheet.png")
    assert sheet.shape == (3 * 264 + 2 * 6, 3 * 320 + 2 * 6, 3)
    cells = [
        sheet[top + 24 : top + 264, left : left + 320] for top in range(0, 800, 270) for left in range(0, 970, 326)
    ]
    assert len(cells) == len(SHOWN)
    for number, cell in enumerate(cells[1:], start=1):
        assert psnr(cell, cells[0]) < 36, list(SHOWN)[number]
    Image.fromarray(sheet[:100, :100]).save(tmp_path / "small.png")
    for arguments in ([tmp_path / "small.png", tmp_path / "x.png"], [photo, tmp_path / "x.txt"]):
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        assert capsys.readouterr().err.startswith("error: ")
