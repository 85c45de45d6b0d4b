"""The weights that come with this software: small, undamaged, and taken where no other are named."""

import numpy as np
import pytest
from PIL import Image
from tiny_network import random_params, tiny_network

import concertormer_jax
from concertormer_jax.commands import restore
from concertormer_jax.inference import restorer
from concertormer_jax.models import create
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import results_path
from concertormer_jax.runtime.paths import BUNDLED_WEIGHTS, user_path
from concertormer_jax.weights import load_weights_file, torch_from_params, write_state_dict
from concertormer_jax.weights.checkpoints import load_model
from concertormer_jax.weights.state_dict import TRAIN_CROP, write_safetensors


@pytest.fixture(scope="module")
def bundled_model():
    return load_model()


def test_they_are_those_of_pocket_and_take_less_than_ten_megabytes(bundled_model):
    assert bundled_model.module == create("pocket")
    assert bundled_model.name == "pocket, bundled"
    assert bundled_model.train_crop_px == 128
    assert user_path(BUNDLED_WEIGHTS).stat().length < 10e6


def test_restore_takes_them_and_says_so(bundled_model, tmp_path, monkeypatch, capsys):
    class Restorer:
        def __init__(self, model, **_):
            np.testing.assert_array_equal(model.params["ending"]["bias"], bundled_model.params["ending"]["bias"])
            raise UserError("enough")

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(restore, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(restore, "Restorer", Restorer)
    with pytest.raises(SystemExit):
        restore.main([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    said = capsys.readouterr()
    assert "the weights that come with this software are used: pocket" in said.out
    assert "enough" in said.err


def test_the_python_interface_takes_them(bundled_model, monkeypatch):
    monkeypatch.setattr(restorer, "Restorer", lambda model, **_: model)
    assert concertormer_jax.load().name == bundled_model.name


def test_results_do_not_go_into_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results_path(None, BUNDLED_WEIGHTS, "evaluation").resolve() == tmp_path / "results" / "evaluation"


def test_a_weights_file_keeps_the_crop_of_its_training(tmp_path):
    module = tiny_network()
    state_dict = torch_from_params(random_params(module), module)
    write_state_dict(tmp_path / "a.safetensors", state_dict, train_crop_px=96)
    assert load_weights_file(tmp_path / "a.safetensors").train_crop_px == 96
    write_state_dict(tmp_path / "b.safetensors", state_dict)
    assert load_weights_file(tmp_path / "b.safetensors").train_crop_px == 256
    write_safetensors(state_dict, tmp_path / "c.safetensors", {TRAIN_CROP: "0"})
    with pytest.raises(UserError, match=r"c\.safetensors: train_crop_px in its metadata is '0'"):
        load_weights_file(tmp_path / "c.safetensors")
