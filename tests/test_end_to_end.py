"""A small network with attention through train, kill, resume, evaluate and restore, compiled as a user compiles it."""

import json
import re
import sys

import command_lines
import jax
import numpy as np
import pytest
import training_runs as runs
from xla_flags import default_flags

from concertormer_jax.data.images import read_rgb, write_png
from concertormer_jax.metrics.psnr_ssim import psnr_rgb
from concertormer_jax.models import initial_params
from concertormer_jax.photos.photo_io import Photo, read_photo, write_photo
from concertormer_jax.training.setup import module_from
from concertormer_jax.weights.checkpoints import load_model, save_converted
from configs import custom

LAST_STEP = 4
WINDOW = 64  # of TLC, in pixels: the least for training crops of 32


def start(arguments):
    return runs.start(arguments, devices=2, XLA_FLAGS=default_flags())


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a run that begins with given weights, so that those of several hosts begin with the same."""
    folder = tmp_path_factory.mktemp("given")
    runs.write_photos(folder / "photos")
    settings = runs.REAL_RUN | {"data.source": str(folder / "photos"), "init_from": str(folder / "weights")}
    module = module_from(runs.override(custom.get_config(), settings).model)
    save_converted(folder / "weights", module, initial_params(module, 0), train_crop_px=32)
    return settings


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """The work folder of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("trained")
    runs.finish(start(runs.command(workdir, settings)))
    return workdir


def test_killed_while_saving_and_resumed_it_ends_the_same(trained, settings, tmp_path):
    command = runs.command(tmp_path, settings)
    folder = tmp_path / "checkpoints"
    # The temporary folder of a step is there only while the step is being saved.
    assert runs.kill_when(start(command), lambda: any(folder.glob("[23].*tmp*")))
    said = runs.finish(start(command))
    assert int(re.search(r"going on from step (\d)", said)[1]) in (1, 2)
    state = runs.stored_state(tmp_path, LAST_STEP)
    assert {name.partition("[")[0] for name in state} == {"params", "optimizer", "average"}
    runs.assert_identical(state, runs.stored_state(trained, LAST_STEP))


def test_evaluate_scores_what_the_network_with_tlc_gives(trained, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        target = rng.integers(0, 256, (96, 136, 3), dtype=np.uint8)
        write_png(tmp_path / "pairs" / "target" / f"{name}.png", target)
        write_png(tmp_path / "pairs" / "input" / f"{name}.png", target // 2 + 40)
    output = tmp_path / "results"
    command = [sys.executable, "evaluate.py", f"--ckpt={trained}", f"--data={tmp_path / 'pairs'}", f"--output={output}"]
    runs.finish(start(command))

    model = load_model(trained)
    restore = jax.jit(model.module.clone(tlc_window=WINDOW).apply)
    scores = []
    for name in ("one", "two"):
        image, target = (read_rgb(tmp_path / "pairs" / part / f"{name}.png") for part in ("input", "target"))
        expected = np.clip(restore({"params": model.params}, image[None] / np.float32(255))[-1][0], 0, 1) * 255
        restored = read_rgb(output / "restored" / f"{name}.png")
        assert np.abs(restored - expected).max() < 0.51
        assert np.abs(expected - image).mean() > 0.5, "the network does something"
        scores.append(psnr_rgb(restored, target))
    result = json.loads((output / "results.json").read_text())["mean"]["psnr_rgb"]
    assert result["restored"] == pytest.approx(np.mean(scores), abs=1e-6)


def test_tiles_are_the_whole_picture(trained, tmp_path, monkeypatch):
    """Beyond three windows of TLC from where a tile ends, one for each attention; elsewhere they are close to it."""
    tile, width = 320, 576
    rgb = np.random.default_rng(0).random((tile, width, 3), np.float32)
    write_photo(tmp_path / "in.png", Photo(rgb, bits=16))
    monkeypatch.setenv("XLA_FLAGS", default_flags())
    lines = [[f"--ckpt={trained}", "in.png", f"{tile}.png", f"--tile={tile}"] for tile in ("320", "off")]
    for status, said in command_lines.run_all("concertormer_jax.commands.restore", lines, tmp_path):
        assert status == 0, said
    tiled, whole = (read_photo(tmp_path / name).rgb for name in ("320.png", "off.png"))
    difference, effect = np.abs(tiled - whole), np.abs(whole - rgb)
    far = 3 * WINDOW + 8
    exact = np.r_[0 : tile - far, width - tile + far : width]
    assert difference[:, exact].max() <= 1 / 65535
    assert effect[:, exact].max() > 0.01
    assert 1 / 65535 < difference.max() < 0.1 * effect.max()


def test_two_hosts_train_like_one_process(trained, settings, tmp_path):
    first, second = [runs.finish(host) for host in runs.start_hosts(runs.command(tmp_path, settings), 2)]
    assert f"step {LAST_STEP} is saved" in first
    assert "is saved" not in second
    before, one = (runs.stored_state(trained, step) for step in (LAST_STEP - 1, LAST_STEP))
    runs.assert_close(runs.stored_state(tmp_path, LAST_STEP), one, before)
