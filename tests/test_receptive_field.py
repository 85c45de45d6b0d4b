"""The effective receptive field: on networks where it is known, and through the command."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from concertormer_jax.analysis.attribution import influence_on_middle, radius_holding
from concertormer_jax.analysis.reports import receptive_field_picture
from concertormer_jax.commands import receptive_field as command


def mean_of_3x3(images):
    return jax.lax.reduce_window(images, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9


def test_the_field_of_a_mean_is_known():
    images = jnp.asarray(np.random.default_rng(0).random((2, 8, 10, 3), np.float32))
    field = np.asarray(influence_on_middle(lambda images: mean_of_3x3(images) * -1, images))
    expected = np.zeros((2, 8, 10))
    expected[:, 3:6, 4:7] = 3 / 9  # three channels
    np.testing.assert_allclose(field, expected, atol=1e-6)
    assert radius_holding(field[0], 0.1) == 0
    assert radius_holding(field[0], 0.5) == 1
    assert radius_holding(field[0], 0.9) == pytest.approx(2**0.5)


@pytest.fixture
def loaded(monkeypatch):
    """Let the command load the mean of 3x3, twice, and leave the settings of the process alone."""
    module = SimpleNamespace(
        apply=lambda variables, images: (None, mean_of_3x3(mean_of_3x3(images))), clone=lambda **fields: module
    )
    model = SimpleNamespace(module=module, params={}, name="two means")
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: model)


def test_the_command_tells_the_radii(tmp_path, loaded, capsys):
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (20, 30)), ("b.png", (41, 16))):
        Image.fromarray(np.full((*size, 3), 100, np.uint8)).save(tmp_path / "in" / name)
    command.main(["--ckpt=ckpt", str(tmp_path / "in"), "--crop=16", f"--output={tmp_path / 'out'}"])
    content = json.loads((tmp_path / "out" / "receptive_field.json").read_text())
    assert content["images"] == 2
    assert content["radius_px"] == pytest.approx({"50%": 2**0.5, "90%": 5**0.5, "99%": 8**0.5})
    assert content["share_of_the_middle_pixel"] == pytest.approx(1 / 9)
    assert "50% within 1.4, 90% within 2.2, 99% within 2.8 pixels; the middle pixel alone has 11.1%" in (
        capsys.readouterr().out
    )
    with Image.open(tmp_path / "out" / "receptive_field.png") as picture:
        assert picture.size == (480, 510)


def test_the_field_is_the_mean_over_pictures(tmp_path):
    paths = []
    for value in (51, 204):
        paths.append(tmp_path / f"{value}.png")
        Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(paths[-1])
    field = command._mean_field(jax.tree_util.Partial(lambda images: images**2), paths, 4)
    expected = np.zeros((4, 4))
    expected[2, 2] = 3 * (2 * 0.2 + 2 * 0.8) / 2  # three channels, d(x^2) = 2 x
    np.testing.assert_allclose(field, expected, atol=1e-6)


def test_circles_mark_the_radii():
    field = np.zeros((48, 48))
    field[24, 24] = 1
    picture = np.asarray(receptive_field_picture(field, {"90%": 9.5}))[30:].astype(int)
    middle = 24 * 10 + 5
    np.testing.assert_array_equal(picture[middle, middle + 99], [0, 230, 255])
    np.testing.assert_array_equal(picture[middle, middle + 80], picture[0, 0])
    assert picture[middle, middle].sum() > 600 > 100 > picture[0, 0].sum()


def test_the_command_fails_with_one_sentence(tmp_path, loaded, capsys, monkeypatch):
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(picture)
    arguments = ["--ckpt=ckpt", str(picture), f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "a.png: has 30x20 pixels; give a smaller --crop than 256" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--crop=0"])
    assert "--crop: '0' must be a whole number from 1" in capsys.readouterr().err
    monkeypatch.setattr(command, "restoring", lambda model: jax.tree_util.Partial(lambda images: images * jnp.nan))
    with pytest.raises(SystemExit):
        command.main([*arguments, "--crop=16"])
    assert "not finite" in capsys.readouterr().err
