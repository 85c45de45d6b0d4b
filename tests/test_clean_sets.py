"""Benchmarks of clean pictures: the protocol makes their inputs, the same as published programs do."""

import json
import re
import shutil

import numpy as np
import pytest
import training_runs as runs
from fake_model import fake_model

from concertormer_jax.commands import evaluate as command
from concertormer_jax.data import pipeline
from concertormer_jax.data.degrade.benchmarks import imresize
from concertormer_jax.data.folders import Pair
from concertormer_jax.data.images import read_rgb, to_uint8, write_png
from concertormer_jax.data.sources import Mixture, PairSource
from concertormer_jax.evaluation.evaluator import evaluate
from concertormer_jax.evaluation.sets import open_sets
from concertormer_jax.metrics import psnr_ssim
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.schedule import make_phases
from concertormer_jax.training.setup import sources_from, training_from
from configs import denoise

SIZE = (37, 50)


@pytest.fixture
def clean(tmp_path):
    """A folder Set5/HR of two pictures whose sides are no multiples of 4."""
    rng = np.random.default_rng(0)
    for number in range(2):
        blocks = rng.integers(0, 256, (13, 13, 3)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
        write_png(tmp_path / "Set5" / "HR" / f"{number}.png", blocks[: SIZE[0], : SIZE[1]])
    return tmp_path / "Set5" / "HR"


def opened(data, protocol):
    protocol, (pairs,) = open_sets(str(data), protocol)
    return protocol, pairs


def test_noise_is_that_of_published_programs(clean, tmp_path):
    """They seed NumPy's older generator with 0 for each picture, on the scale from 0 to 1."""
    (clean.parent.parent / "CBSD68").mkdir()
    data = clean.rename(clean.parent.parent / "CBSD68" / "original")
    protocol, pairs = opened(data, "denoise_25")
    assert pairs.name == "cbsd68"
    for index in range(2):
        noisy, target = pairs.read(index)
        np.testing.assert_array_equal(target, read_rgb(data / f"{index}.png"))
        published = np.float32(target) / 255 + np.random.RandomState(0).normal(0, 25 / 255, target.shape)
        np.testing.assert_allclose(noisy, 255 * published, atol=1e-3)
    result = evaluate(fake_model(), pairs, tmp_path / "out", protocol=protocol, tlc="off", log=lambda line: None)
    for image in result.images:
        noisy, target = pairs.read(image.index)
        # The network that changes nothing returns its input, clipped and rounded.
        np.testing.assert_array_equal(read_rgb(image.file), to_uint8(noisy))
        assert image.restored["psnr_rgb"] == image.input["psnr_rgb"] == psnr_ssim.psnr_rgb(to_uint8(noisy), target)


@pytest.mark.parametrize("scale", [2, 4])
def test_super_resolution_cuts_to_the_scale_and_leaves_its_border_out(clean, tmp_path, scale):
    protocol, pairs = opened(clean, f"super_resolution_x{scale}")
    assert pairs.name == "set5"
    height, width = (length - length % scale for length in SIZE)
    assert pairs.sizes == ((height, width),) * 2
    result = evaluate(fake_model(), pairs, tmp_path / "out", protocol=protocol, log=lambda line: None, tlc="off")
    assert result.metrics == ("psnr_y_float", "ssim_y_float")
    inner = slice(scale, -scale)
    for image in result.images:
        target = read_rgb(clean / f"{image.name}.png")[:height, :width]
        enlarged = imresize(imresize(target, 1 / scale), scale)
        np.testing.assert_array_equal(pairs.read(image.index)[0], enlarged)
        y, wanted_y = (16 + picture @ [65.481, 128.553, 24.966] / 255 for picture in (enlarged, target))
        squared = np.mean((y - wanted_y)[inner, inner] ** 2)
        assert image.restored["psnr_y_float"] == pytest.approx(10 * np.log10(255**2 / squared), abs=1e-6)
        assert 0 < image.restored["ssim_y_float"] < 1


def test_luma_is_not_rounded(clean):
    target = read_rgb(clean / "0.png")
    other = to_uint8(target.astype(np.float32) + 1)
    values = psnr_ssim.score(["psnr_y", "psnr_y_float", "ssim_y", "ssim_y_float"], other, target).values
    assert 0 < abs(values["psnr_y"] - values["psnr_y_float"]) < 1
    assert 0 < abs(values["ssim_y"] - values["ssim_y_float"]) < 0.01


def test_predictions_are_scored_by_the_protocol(clean, tmp_path, capsys):
    for number in range(2):
        write_png(tmp_path / "made" / f"{number}.png", read_rgb(clean / f"{number}.png")[:36, :48])
    output = tmp_path / "scores"
    arguments = [f"--predictions={tmp_path / 'made'}", f"--data={clean}", "--protocol=super_resolution_x4"]
    command.main([*arguments, f"--output={output}"])
    results = json.loads((output / "results.json").read_text())
    assert results["mean"]["psnr_y_float"]["restored"] == "inf"
    assert 5 < results["mean"]["psnr_y_float"]["input"] < 50
    assert "set5" in capsys.readouterr().out


def test_what_is_no_folder_of_clean_pictures_is_refused(clean, tmp_path):
    with pytest.raises(UserError, match="--protocol=denoise_15 takes a folder of clean pictures"):
        open_sets("tfds:gopro", "denoise_15")
    write_png(tmp_path / "pairs" / "input" / "0.png", read_rgb(clean / "0.png"))
    write_png(tmp_path / "pairs" / "target" / "0.png", read_rgb(clean / "0.png"))
    with pytest.raises(UserError, match=re.escape(f"give the folder of the clean pictures, {tmp_path}/pairs/target")):
        open_sets(str(tmp_path / "pairs"), "denoise_15")
    assert len(opened(tmp_path / "pairs" / "target", "denoise_15")[1]) == 1
    write_png(clean / "more" / "0.png", read_rgb(clean / "0.png"))
    assert opened(clean, "denoise_15")[1].names == ("0", "1", "more/0")
    shutil.copy(clean / "0.png", clean / "0.jpg")
    with pytest.raises(UserError, match=r"0\.(png|jpg)"):
        open_sets(str(clean), "denoise_15")
    (clean / "0.jpg").unlink()
    write_png(clean / "tiny.png", np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"tiny.png: is too small for --protocol=super_resolution_x4"):
        open_sets(str(clean), "super_resolution_x4")


def test_noisy_inputs_reach_the_step_as_floats_also_from_a_mixture(clean):
    settings = runs.TINY_RUN | runs.ONE_STAGE | runs.WITHOUT_ATTENTION
    config = runs.override(denoise.get_config("50"), settings | {"data.source": str(clean)})
    training = training_from(config, make_phases((2,), (16,), (8,)))
    assert training.input_dtype == np.float32
    photographs, _ = sources_from(config)
    mixed = Mixture([photographs, PairSource([Pair("same", clean / "0.png", clean / "0.png")])], (0.5, 0.5))
    options = {"seed": 0, "position": 0, "batch": 8, "host_index": 0, "host_count": 1, "crop_px": 16, "steps": 1}
    (batch,) = pipeline.batches(mixed, **options, input_dtype=training.input_dtype)
    assert batch["input"].dtype == np.float32 and batch["target"].dtype == np.uint8
    noise = (batch["input"] - batch["target"]).std(axis=(1, 2, 3))
    assert sorted(np.round(noise / 50).astype(int)) == [0] * 4 + [1] * 4
    assert batch["input"].min() < -10, "nothing is clipped"
    with pytest.raises(TypeError, match="float32"):
        list(pipeline.batches(mixed, **options))


@pytest.mark.parametrize("place", ["", "results"])
def test_results_among_the_clean_pictures_are_refused(clean, tmp_path, monkeypatch, capsys, place):
    """They would be clean pictures of the next evaluation."""
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: fake_model())
    for flags in ([], [f"--predictions={tmp_path}"]):
        with pytest.raises(SystemExit):
            command.main([*flags, f"--data={clean}", "--protocol=denoise_15", f"--output={clean / place}"])
        assert f"{clean / place}: lies in the folder of pictures {clean}" in capsys.readouterr().err
    assert len(list(clean.iterdir())) == 2


def test_each_protocol_has_results_of_its_own(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: fake_model())
    for sigma in (15, 50):
        command.main([f"--ckpt={tmp_path / 'run'}", f"--data={clean}", f"--protocol=denoise_{sigma}", "--tlc=off"])
    folders = sorted((tmp_path / "run" / "evaluation").iterdir())
    assert [folder.name for folder in folders] == ["Set5-HR-denoise_15-tlc-off", "Set5-HR-denoise_50-tlc-off"]
    means = [json.loads((folder / "results.json").read_text())["mean"]["psnr_rgb"]["input"] for folder in folders]
    assert means[0] > means[1] + 5
