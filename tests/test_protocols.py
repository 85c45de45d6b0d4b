"""Each benchmark's protocol: the numbers that decide whether a score can be set beside a published one."""

import pytest

from concertormer_jax.errors import UserError
from concertormer_jax.evaluation.opening import set_name
from concertormer_jax.evaluation.protocols import PAIRS, PROTOCOLS, protocol_named

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
        ("reds", RGB, 512, 300),
        ("sidd", ("psnr_rgb_unrounded", "ssim_rgb_3d_unrounded"), None, 1280),
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
        UserError, match=r"--protocol=GoPro: .* gopro, hide, realblur_r, realblur_j, derain, reds, sidd"
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
