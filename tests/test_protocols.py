"""Each benchmark's protocol: the numbers that decide whether a score can be set beside a published one."""

import importlib

import jax
import pytest
import training_runs as runs
from dataset_fixtures import write_set

from concertormer_jax.evaluation.scores import PAIRS, PROTOCOLS, protocol_named
from concertormer_jax.evaluation.sets import protocol_of_training, set_name
from concertormer_jax.planning.compilation import evaluation_task
from concertormer_jax.runtime.devices import data_mesh
from concertormer_jax.runtime.errors import UserError

RGB = ("psnr_rgb", "ssim_rgb_3d")
REALBLUR = ("psnr_realblur", "ssim_realblur")


@pytest.mark.parametrize(
    ("name", "metrics", "window", "images"),
    [
        ("gopro", RGB, 448, 1111),
        ("hide", RGB, 512, 2025),
        ("realblur_r", REALBLUR, 320, 980),
        ("realblur_j", REALBLUR, 320, 980),
        ("derain", ("psnr_y", "ssim_y"), 448, 4300),
        ("rsblur", ("psnr_rsblur", "ssim_rsblur"), 320, 3360),
        ("reds", RGB, 512, 300),
        ("reds_blur", RGB, 512, 300),
        ("sidd", ("psnr_rgb_unrounded", "ssim_rgb_3d_unrounded"), None, 1280),
        ("denoise_25", RGB, 448, 210),
        ("super_resolution_x4", ("psnr_y_float", "ssim_y_float"), 448, 328),
    ],
)
def test_protocol(name, metrics, window, images):
    protocol = protocol_named(name)
    assert protocol.metrics == metrics
    for train_crop_px in (64, 256, 384, None):
        assert protocol.tlc_window("auto", train_crop_px) == window, "whatever crops the network was trained on"
    assert protocol.tlc_window("off", 256) is None
    assert protocol.tlc_window("128", 256) == 128
    assert sum(protocol.sets.values()) == images


def test_pairs_of_no_benchmark_go_by_the_training_crop():
    assert PAIRS.metrics == RGB
    assert [PAIRS.tlc_window("auto", crop) for crop in (128, 256, 320, None)] == [256, 448, 576, 448]


def test_the_average_of_deraining_leaves_test1200_out():
    assert PROTOCOLS["derain"].averaged == ("test100", "rain100h", "rain100l", "test2800")
    assert "test1200" in PROTOCOLS["derain"].sets


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError,
        match=r"--protocol=GoPro: .* gopro, hide, realblur_r, realblur_j, derain, rsblur, reds, reds_blur, sidd",
    ):
        protocol_named("GoPro")


@pytest.mark.parametrize(
    ("protocol", "row", "count", "name"),
    [
        ("gopro", "my_folder", 1, "gopro"),
        ("hide", "test", 1, "hide"),
        ("derain", "Rain100L", 1, "rain100l"),
        ("derain", "rain-100-H", 5, "rain100h"),
        ("derain", "drizzle", 1, "drizzle"),
        ("pairs", "Rain100L", 1, "Rain100L"),
    ],
)
def test_sets_are_called_as_in_the_protocol(protocol, row, count, name):
    assert set_name(PROTOCOLS[protocol], row, count) == name


@pytest.mark.parametrize("path", sorted((runs.ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_plan_and_evaluation_take_the_same_window(path):
    """A recipe's plan compiles the windows that `evaluate.py` takes for the benchmark that the recipe trains for."""
    if path.stem in ("__init__", "common"):
        return
    config = importlib.import_module(f"configs.{path.stem}").get_config()
    crop = max(config.stages.crop_px)
    protocol = protocol_of_training(config.data.source)
    prepared = config.data.source.startswith("tfds:")
    assert protocol.name == (path.stem if path.stem in PROTOCOLS else "gopro" if prepared else "pairs")
    names = runs.override(config, runs.TINY_NETWORK | runs.WITHOUT_ATTENTION | {"model.dtype": "float32"})
    task = evaluation_task(names, data_mesh(jax.devices()[:1]), 24, 40, "auto")
    window = protocol.tlc_window("auto", crop)
    assert task.name == (
        f"evaluation (24x40, {f'TLC windows of {window} px' if window else 'without TLC'}, protocol {protocol.name})"
    )
    windows = {"hide": 512, "reds": 512, "reds_blur": 512, "sidd": None, "realblur_r": 320, "realblur_j": 320}
    assert window == (windows | {"rsblur": 320}).get(path.stem, 448 if prepared else PAIRS.tlc_window("auto", crop))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("tfds:gopro/blur_gamma", "gopro"),
        ("tfds:rain13k,tfds:rain13k/", "derain"),
        ("tfds:pairs/mine", "pairs"),
        ("tfds:gopro,tfds:reds", "pairs"),
        ("tfds:gopro,photos/train,tfds:pairs/mine", "gopro"),
        ("gone", "pairs"),
        ("", "pairs"),
    ],
)
def test_protocol_follows_from_what_is_trained_on(source, name):
    assert protocol_of_training(source).name == name


def test_protocol_follows_from_a_benchmarks_folder(tmp_path, monkeypatch):
    write_set("reds", "original", tmp_path)
    assert protocol_of_training(f"{tmp_path}/train").name == "reds"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert protocol_of_training("~/train").name == "reds"
