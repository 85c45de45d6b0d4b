"""--tlc and --tile in pixels."""

import pytest

from concertormer_jax.evaluation.scores import PROTOCOLS
from concertormer_jax.inference.tiles import overlap_px, tile_setting, tlc_window
from concertormer_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("setting", "crop", "window"),
    [
        ("auto", 256, 448),
        ("auto", None, 448),
        ("auto", 128, 256),
        ("auto", 320, 576),
        ("auto", 384, 704),
        ("off", 256, None),
        ("64", 256, 64),
        ("320", None, 320),
    ],
)
def test_tlc_windows(setting, crop, window):
    assert tlc_window(setting, crop) == window


def test_tlc_windows_fit_the_network():
    assert tlc_window("auto", 256, multiple=32) == 448
    assert tlc_window("auto", 256, multiple=128) == 512
    assert PROTOCOLS["gopro"].tlc_window("auto", None, multiple=128) == 512
    assert tlc_window("384", 256, multiple=128) == 384
    with pytest.raises(UserError, match=r"--tlc=448: must be a multiple of 128 pixels .* nearest: 384 and 512"):
        tlc_window("448", 256, multiple=128)


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("100", "64 and 128"),
        ("447", "384 and 448"),
        ("1", "64"),
        ("0", "64"),
        ("-64", "64"),
        ("on", "number of pixels"),
        ("", "number of pixels"),
        ("64.0", "number of pixels"),
        ("nan", "number of pixels"),
        ("64000000000", "at most 1048576 pixels"),
    ],
)
def test_other_tlc_settings_are_refused_with_the_nearest(setting, nearest):
    with pytest.raises(UserError, match=f"--tlc={setting}: .*{nearest}"):
        tlc_window(setting, 256)


def test_tile_sizes():
    assert tile_setting("auto") is None
    assert tile_setting("256") == 256
    assert tile_setting("off") == tile_setting("0") == 0
    with pytest.raises(UserError, match=r"--tile=500: .*448 and 512"):
        tile_setting("500")
    with pytest.raises(UserError, match=r"--tile=64: .*nearest: 128"):
        tile_setting("64")


def test_tiles_of_a_network_with_larger_blocks_are_multiples_of_its_own():
    assert overlap_px(896, 128) == 128
    with pytest.raises(UserError, match=r"--tile=448: must be a multiple of 128 pixels from 256 up; .*384 and 512"):
        tile_setting("448", 128)


@pytest.mark.parametrize("tile", range(128, 2049, 64))
def test_tiles_overlap_by_about_an_eighth(tile):
    assert overlap_px(tile) % 64 == 0
    assert tile / 16 <= overlap_px(tile) <= tile / 2
