"""Local attribution maps: the path, the detector, completeness, the index, and the command."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from tiny_network import random_images, random_params, tiny_network

from concertormer_jax.analysis import windows
from concertormer_jax.analysis.attribution import (
    PathIntegral,
    blurred,
    diffusion_index,
    edges_in_window,
    gaussian_kernels,
    gini,
    gradient_magnitude,
    holding,
    path_points,
    strength,
)
from concertormer_jax.analysis.reports import attribution_sheet
from concertormer_jax.analysis.windows import Window, cut_around, middle_window, parse_window
from concertormer_jax.commands import attribution as command
from concertormer_jax.runtime.errors import UserError

SILENT = {"log": lambda line: None}


def convolutions(depth):
    """A network of `depth` convolutions of 3x3 with a bend between: it sees `depth` pixels far."""
    kernels = np.random.default_rng(0).normal(scale=0.3, size=(depth, 3, 3, 3, 3)).astype(np.float32)

    def restore(images):
        for kernel in kernels:
            layout = ("NHWC", "HWIO", "NHWC")
            images = jnp.tanh(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout))
        return images

    return restore


def gaussian_blurred(picture, sigma):
    """SciPy's blur, cut to 9x9 pixels."""
    return scipy.ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="mirror", radius=(4, 4, 0))


def test_the_path_goes_from_the_blurred_picture_to_the_picture():
    picture = random_images(20, 24, 3)
    points = path_points(1.2, 50)
    assert points.shape == (52, 3)
    np.testing.assert_allclose(points[[0, 49]], [[1.188, 1.2, 1.176], [0.012, 0.024, 0]], atol=1e-6)
    np.testing.assert_allclose(points[50:], [[1.2] * 3, [0] * 3])
    path = blurred(np.stack([picture] * 3), jnp.array([1.2, 0.6, 0.0]), 9)
    np.testing.assert_allclose(path[0], gaussian_blurred(picture, 1.2), atol=1e-6)
    np.testing.assert_allclose(path[1], gaussian_blurred(picture, 0.6), atol=1e-6)
    np.testing.assert_array_equal(path[2], picture)


def test_kernels_have_a_middle():
    np.testing.assert_array_equal(gaussian_kernels(jnp.zeros(1), 3), [[0, 1, 0]])
    with pytest.raises(ValueError, match="size=4"):
        gaussian_kernels(jnp.ones(1), 4)


def test_the_detector_sums_the_gradient_in_the_window():
    image = np.zeros((1, 4, 5, 1), np.float32)
    image[0, 1, 2] = 3
    image[0, 2, 1] = 4
    magnitude = np.array([[0, 0, 3, 0], [0, 5, 18**0.5, 0], [4, 32**0.5, 0, 0]])
    np.testing.assert_allclose(gradient_magnitude(jnp.array(image))[0, :, :, 0], magnitude, atol=1e-6)
    assert edges_in_window(jnp.array(image), jnp.array([1, 1, 2]))[0] == pytest.approx(5 + 18**0.5 + 32**0.5)
    assert edges_in_window(jnp.array(image), jnp.array([0, 2, 2]))[0] == pytest.approx(4 + 32**0.5)  # at the border


def test_the_detector_has_no_gradient_where_the_picture_is_flat():
    gradient = jax.grad(lambda images: edges_in_window(images, jnp.array([0, 0, 4]))[0])(jnp.full((1, 5, 5, 3), 0.5))
    np.testing.assert_array_equal(gradient, 0)


def test_a_rising_picture_through_the_identity_has_a_known_map():
    # Rows rise, so the detector is I[:, 12] - I[:, 4], summed over the window's rows: each row's two ends contribute
    # what the blur took from them, and nothing else does.
    rising = np.sort(random_images(1, 20, 3), axis=1)
    picture = np.repeat(rising, 16, axis=0)
    attribution = PathIntegral(lambda images: images, steps=7, batch=2, **SILENT)(picture, Window(4, 3, 8))
    lost = picture - gaussian_blurred(picture, 1.2)
    expected = np.zeros_like(picture)
    expected[3:11, 12] = lost[3:11, 12]
    expected[3:11, 4] = -lost[3:11, 4]
    np.testing.assert_allclose(attribution.contributions, expected, atol=2e-5)
    assert attribution.change == pytest.approx(expected.sum(), rel=1e-4)


def test_the_map_vanishes_outside_the_receptive_field():
    depth, window = 3, Window(20, 16, 8)
    picture = random_images(44, 48, 3)
    attribution = PathIntegral(convolutions(depth), **SILENT)(picture, window)
    seen = attribution.contributions.any(axis=2)
    expected = np.zeros_like(seen)
    expected[16 - depth : 25 + depth, 20 - depth : 29 + depth] = True  # the last row and column have neighbours
    expected[24 + depth, 28 + depth] = False  # but the corner none in both directions
    np.testing.assert_array_equal(seen, expected)
    assert attribution.completeness == pytest.approx(1, abs=0.02)
    assert attribution.diffusion_index < 100 * expected.mean()


def test_contributions_of_the_network_sum_to_the_change():
    module = tiny_network()
    params = random_params(module)
    picture = scipy.ndimage.gaussian_filter(random_images(20, 28, 3), (1, 1, 0))  # padded by the network
    restore = windows.restoring(SimpleNamespace(module=module, params=params))
    integral, calls = PathIntegral(restore, batch=26, **SILENT), []
    attribution = integral(picture, Window(9, 5, 8), lambda: calls.append(1))
    ends = np.stack([gaussian_blurred(picture, 1.2), picture])
    values = edges_in_window(jax.jit(module.apply)({"params": params}, ends)[-1], jnp.array([9, 5, 8]))
    assert attribution.change == pytest.approx(float(values[1] - values[0]), rel=1e-3)
    assert attribution.completeness == pytest.approx(1, abs=0.02)
    assert len(calls) == integral.parts == 2


def test_the_batch_does_not_change_the_map():
    picture, window = random_images(16, 16, 3), Window(4, 4, 8)
    one, many = (PathIntegral(convolutions(1), steps=6, batch=batch, **SILENT)(picture, window) for batch in (1, 5))
    np.testing.assert_allclose(many.contributions, one.contributions, atol=1e-5)
    assert many.change == pytest.approx(one.change, rel=1e-5)


def test_a_window_outside_the_picture_is_refused():
    for height, width in ((12, 11), (11, 12)):
        with pytest.raises(ValueError, match="window=4,4,8"):
            PathIntegral(convolutions(1), **SILENT)(random_images(height, width, 3), Window(4, 4, 8))
        with pytest.raises(UserError, match=f"a.png: the window 4,4,8 .* {width}x{height} pixels"):
            Window(4, 4, 8).require_within(height, width, "a.png")
    Window(4, 4, 8).require_within(12, 12, "a.png")


def test_the_index_is_large_where_pixels_contribute_equally():
    assert diffusion_index(np.ones((4, 5))) == pytest.approx(100)
    alone = np.zeros((10, 20))
    alone[3, 7] = 2
    assert diffusion_index(alone) == pytest.approx(100 / 200)  # nearly 0: one of 200 pixels
    assert gini(np.array([3.0, 1.0])) == pytest.approx(0.25)  # |3 - 1| twice, over 2 * 2^2 * 2
    values = np.random.default_rng(0).random(30)
    assert gini(values) == pytest.approx(np.abs(values[:, None] - values).mean() / (2 * values.mean()))


def test_the_strength_of_a_pixel_is_the_size_of_its_channels_sum():
    np.testing.assert_allclose(strength(np.array([[[1.0, -3, 1], [4, 0, 0]]])), [[0.25, 1]])
    with pytest.raises(ValueError, match="all 0"):
        strength(np.zeros((2, 2, 3)))


def test_the_smallest_area_that_holds_a_share():
    np.testing.assert_array_equal(holding(np.array([[1.0, 5], [0, 4]]), 0.9), [[False, True], [False, True]])
    np.testing.assert_array_equal(holding(np.array([[1.0, 5], [0, 4]]), 0.95), [[True, True], [False, True]])


def test_the_sheet_shows_window_and_attributions():
    picture = np.full((30, 40, 3), 128, np.uint8)
    strengths = np.zeros((30, 40))
    strengths[3:5, 30:34] = 1
    sheet = np.asarray(attribution_sheet(picture, strengths, Window(10, 12, 8))).astype(int)
    height, width = 16 * 30, 16 * 40
    panels = [sheet[-height:, i * (width + 8) : i * (width + 8) + width] for i in range(3)]
    for panel in panels:  # the frame lies just outside the window
        np.testing.assert_array_equal(panel[16 * 12 - 1, 16 * 10 : 16 * 18], [[0, 230, 255]] * 128)
    np.testing.assert_array_equal(panels[0][16 * 4, 16 * 32], 128)
    assert panels[1][16 * 4, 16 * 32].min() > 180  # the lightest colour
    np.testing.assert_array_equal(panels[1][16 * 20, 16 * 5], 64)
    assert panels[2][16 * 4, 16 * 32].sum() > panels[2][16 * 5, 16 * 32].sum() > panels[2][16 * 20, 16 * 5].sum()


def test_windows():
    assert parse_window("100, 80,16") == Window(100, 80, 16)
    for text in ("1,2", "a,2,3", "1,2,0", "-1,2,3", "1.5,2,3"):
        with pytest.raises(UserError, match=f"--window={text}: must be x,y,size"):
            parse_window(text)
    assert middle_window(20, 31, 16) == Window(7, 2, 16)


@pytest.mark.parametrize(
    ("window", "side", "corner", "size"),
    [
        (Window(50, 40, 16), 32, (42, 32), (32, 32)),  # in the middle
        (Window(2, 70, 10), 32, (0, 48), (32, 32)),  # at two borders
        (Window(2, 70, 10), 0, (0, 0), (80, 100)),
        (Window(2, 30, 10), 90, (0, 0), (80, 90)),  # higher than the picture
    ],
)
def test_the_cut_holds_the_window(window, side, corner, size):
    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3))
    cut, inside = cut_around(picture, window, side)
    assert cut.shape[:2] == size
    x, y = corner
    np.testing.assert_array_equal(cut, picture[y : y + size[0], x : x + size[1]])
    assert inside == Window(window.x - x, window.y - y, window.size)


@pytest.fixture
def loaded(monkeypatch):
    """Let the command load two convolutions, and leave the settings of the process alone."""
    restore = convolutions(2)
    module = SimpleNamespace(apply=lambda variables, images: (None, restore(images)), clone=lambda **fields: module)
    model = SimpleNamespace(module=module, params={}, name="two convolutions")
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: model)


def save(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_command_attributes_a_picture(tmp_path, loaded, capsys):
    source = save(tmp_path / "one.png", 60, 80)
    command.main(["--ckpt=ckpt", str(source), "--window=30,20,8", "--crop=48", f"--output={tmp_path / 'out'}"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.png", "results.json", "results.md"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"] == {"sigma": 1.2, "steps": 50, "kernel": 9, "crop": 48}
    (row,) = results["per_image"]
    assert (row["name"], row["height"], row["width"], row["window"]) == ("one.png", 48, 48, "30,20,8")
    assert row["completeness"] == pytest.approx(1, abs=0.02)
    assert 0 < row["diffusion_index"] == results["mean"]["diffusion_index"] < 100 * 13**2 / 48**2
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "results.md").read_text() in printed
    assert f"| two convolutions | one.png | 48x48 | 30,20,8 | {row['diffusion_index']:.2f} | " in printed
    assert "note:" not in printed


def test_the_command_averages_over_a_folder(tmp_path, loaded, capsys):
    save(tmp_path / "in" / "a.png", 40, 40)
    save(tmp_path / "in" / "b" / "c.png", 60, 40)
    command.main(["--ckpt=ckpt", str(tmp_path / "in"), "--steps=4", f"--output={tmp_path / 'out'}"])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "b-c.png"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = results["per_image"]
    assert [row["window"] for row in rows] == ["12,12,16", "12,22,16"]  # in the middle
    mean = np.mean([row["diffusion_index"] for row in rows])
    assert results["mean"]["diffusion_index"] == pytest.approx(mean)
    printed = capsys.readouterr().out
    assert f"| mean of 2 ± standard deviation |  |  | {mean:.2f} ± " in printed
    assert "note: the pictures differ in size" in printed


def test_an_integral_that_is_not_complete_is_told(tmp_path, loaded, capsys):
    source = save(tmp_path / "one.png", 40, 40)
    command.main(["--ckpt=ckpt", str(source), "--steps=1", "--sigma=4", f"--output={tmp_path / 'out'}"])
    assert "the first is one.png; give more --steps" in capsys.readouterr().out


def test_the_command_fails_with_one_sentence(tmp_path, loaded, capsys):
    picture = save(tmp_path / "in" / "a.png", 40, 30)
    save(tmp_path / "same" / "a.png", 40, 40)
    save(tmp_path / "same" / "a.jpg", 40, 40)
    Image.new("RGB", (40, 40)).save(tmp_path / "flat.png")
    for arguments, message in [
        ([tmp_path / "missing.png"], "missing.png: no such picture or folder"),
        ([tmp_path / "same"], "a.jpg has the same name"),
        ([tmp_path / "flat.png"], "flat.png: is of one colour"),
        ([picture, "--window=20,20,16"], "a.png: the window 20,20,16 (x,y,size) does not lie within its 30x40 pixels"),
        ([picture, "--window=29,39,1", "--steps=2"], "a.png: the window 29,39,1 shows no edge; give another"),
        ([picture, "--window=1,2"], "--window=1,2: must be x,y,size"),
        ([picture, "--crop=8"], "--crop=8: is smaller than the window of 16 pixels"),
        ([picture, "--steps=0"], "--steps: '0' must be a whole number from 1"),
        ([picture, "--batch=0"], "--batch: '0' must be a whole number from 1"),
        ([picture, "--sigma=nan"], "--sigma: 'nan' must be a number from 0.01"),
        ([picture, "--kernel=8"], "--kernel=8: must be an odd number"),
    ]:
        with pytest.raises(SystemExit) as exit_status:
            command.main(["--ckpt=ckpt", *map(str, arguments), f"--output={tmp_path / 'out'}"])
        assert exit_status.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error


def test_a_network_that_diverged_is_refused(tmp_path, loaded, capsys, monkeypatch):
    monkeypatch.setattr(command, "restoring", lambda model: lambda images: images * jnp.nan)
    with pytest.raises(SystemExit):
        command.main(["--ckpt=ckpt", str(save(tmp_path / "a.png", 20, 20)), f"--output={tmp_path / 'out'}"])
    assert "not finite" in capsys.readouterr().err
