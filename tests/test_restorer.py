"""Restoring pictures of any size: one program for all of them, and no tile whose colours are off."""

import dataclasses

import jax
import numpy as np
import pytest
from fake_model import FakeModel, FakeModule, fake_model

from concertormer_jax.inference import restorer as restorer_module
from concertormer_jax.inference.restorer import LARGEST_COLOUR_SHIFT, Restorer, canvas_px, colour_shift
from concertormer_jax.runtime.errors import UserError


def restorer(factor=1.0, model=None, **options):
    return Restorer(model or fake_model(factor), **{"tlc": "off", "log": lambda line: None, **options})


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (37, 53), (720, 1280), (2000, 3000)])
@pytest.mark.parametrize("tile", ["auto", "off"])
def test_the_identity_network_gives_every_size_back(size, tile):
    rgb = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    np.testing.assert_allclose(restorer(tile=tile)(rgb).rgb, rgb, atol=1e-6)


@pytest.mark.parametrize(
    "rgb, message",
    [
        (np.zeros((5, 6, 3), np.uint8), r"got uint8 \[5, 6, 3\]"),
        (np.zeros((5, 6), np.float32), r"got float32 \[5, 6\]"),
        (np.zeros((5, 6, 4), np.float32), r"got float32 \[5, 6, 4\]"),
        (np.zeros((0, 6, 3), np.float32), r"got float32 \[0, 6, 3\]"),
        (np.full((5, 6, 3), 255.0), r"values from 255\.0 to 255\.0; divide bytes by 255"),
        (np.full((5, 6, 3), np.nan), "values from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_own_name(rgb, message):
    with pytest.raises(ValueError, match=message):
        restorer()(rgb)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_any_length_are_taken(dtype):
    restore = restorer()
    for kind in (np.float32, dtype):  # one program for both
        np.testing.assert_allclose(restore(np.full((5, 6, 3), 0.5, kind)).rgb, 0.5, atol=1e-6)


@pytest.mark.parametrize("tile, said", [("off", "compiling 128x64 (batch 1)"), ("384", "compiling 384x384 (batch 4)")])
def test_a_picture_that_is_restored_whole_is_computed_once(monkeypatch, tile, said):
    monkeypatch.setattr(restorer_module, "_BATCH", {})  # as on a GPU
    lines = []
    restorer(tile=tile, log=lines.append)(np.zeros((10, 70, 3), np.float32))
    assert said in lines[0]


def test_a_folder_of_many_sizes_is_restored_with_one_program():
    rng = np.random.default_rng(0)
    sizes = [tuple(int(side) for side in rng.integers(1, 900, 2)) for _ in range(20)]
    lines = []
    restore = restorer(log=lines.append)
    restore.choose_canvas(sizes)
    for size in sizes:
        assert restore(np.zeros((*size, 3), np.float32)).tile_px == 768
    assert [line for line in lines if "compiled" in line] == [line for line in lines if "compiled 768x768" in line]
    assert len(lines) == 2


def test_canvases():
    assert canvas_px([(384, 10), (100, 384)], 64) == 384
    assert canvas_px([(385, 10), (5, 5)], 128) == 768
    assert canvas_px([(4000, 3000)], 128) == 768
    assert canvas_px([(10, 10)], 256) == 512, "a multiple of what the network needs"
    assert canvas_px([(10, 10)], 14 * 4) == 2 * 448, "two, as neighbouring tiles share one"


def test_blocks_of_any_size_fit_a_canvas():
    class Fourteen(FakeModule):
        multiple = 14 * 4

        def clone(self, tlc_window):
            return Fourteen(tlc_window)

    rgb = np.random.default_rng(0).random((20, 1000, 3), np.float32)
    restored = Restorer(FakeModel(np.float32(1), Fourteen()), tlc="off", log=lambda line: None)(rgb)
    assert (restored.tiles, restored.tile_px) == (2, 896)
    np.testing.assert_allclose(restored.rgb, rgb, atol=1e-6)


def test_tlc_reaches_the_network():
    rgb = np.full((10, 10, 3), 0.5, np.float32)
    np.testing.assert_allclose(restorer(tlc="auto")(rgb).rgb, 0.6, atol=1e-6)
    np.testing.assert_allclose(restorer(tlc="off")(rgb).rgb, 0.5, atol=1e-6)


def test_the_result_is_clipped():
    assert restorer(1.2)(np.full((10, 10, 3), 0.9, np.float32)).rgb.max() == 1


def test_a_network_that_diverged_is_refused():
    with pytest.raises(UserError, match="not finite"):
        restorer(np.nan)(np.zeros((10, 10, 3), np.float32))


def test_a_full_device_is_reported_with_the_flag():
    class Greedy(FakeModule):
        def clone(self, tlc_window):
            return Greedy(tlc_window)

        def apply(self, variables, images):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")

    with pytest.raises(UserError, match="--tile=384"):
        restorer(model=FakeModel(np.float32(1), Greedy()))(np.zeros((10, 10, 3), np.float32))


def test_the_colour_shift_is_the_largest_change_of_a_cells_mean():
    images = np.full((2, 130, 200, 3), 0.5, np.float32)
    restored = images.copy()
    restored[0, 64:128, 64:128, 1] += 0.25
    restored[1, :, :, :] += np.where(np.arange(200) % 2, 0.3, -0.3)[:, None]  # sharper, and as bright as before
    np.testing.assert_allclose(colour_shift(restored, images), [0.25, 0], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Mosaic(FakeModule):
    """Paints a square in the corner of what it sees red; without TLC only where `always`."""

    always: bool = False

    def clone(self, tlc_window):
        return Mosaic(tlc_window, self.always)

    def apply(self, variables, images):
        if self.tlc_window is None and not self.always:
            return (images * 0.9,)
        return (images.at[:, :64, :64].set(np.array([1.0, 0.0, 0.0], np.float32)),)


@pytest.mark.parametrize(
    ("always", "expected", "note"), [(False, 0.9, "without TLC"), (True, 1.0, "stay as they were")]
)
def test_no_mosaics(always, expected, note):
    """A tile whose colours are off is restored without TLC; if that is no better, the input stays."""
    rgb = np.random.default_rng(0).uniform(0.2, 0.8, (128, 128, 3)).astype(np.float32)
    result = restorer(model=FakeModel(np.float32(1), Mosaic(always=always)), tlc="64", tile="128")(rgb)
    assert (result.without_tlc, result.kept) == ((0, 1) if always else (1, 0))
    np.testing.assert_allclose(result.rgb, expected * rgb, atol=1e-6)
    assert [note in line for line in result.notes] == [True]


def test_what_is_no_number_without_tlc_is_kept_out(monkeypatch):
    monkeypatch.setattr(
        Mosaic, "apply", lambda self, _, images: (images + (np.nan if self.tlc_window is None else 0.3),)
    )
    rgb = np.full((128, 128, 3), 0.5, np.float32)
    result = restorer(model=FakeModel(np.float32(1), Mosaic()), tlc="64", tile="128")(rgb)
    assert (result.without_tlc, result.kept) == (0, 1)
    np.testing.assert_array_equal(result.rgb, rgb)


def test_colours_that_are_right_are_left_alone():
    rgb = np.random.default_rng(0).uniform(0.2, 0.8, (300, 500, 3)).astype(np.float32)
    slight = 1 - LARGEST_COLOUR_SHIFT / 2
    result = restorer(slight, tlc="64", tile="128")(rgb * 0 + 0.5)
    assert (result.without_tlc, result.kept, result.notes) == (0, 0, [])


def test_progress_counts_the_tiles():
    told = []
    restorer(tile="128")(np.zeros((200, 300, 3), np.float32), progress=lambda *numbers: told.append(numbers))
    assert told == [(done, 12) for done in range(1, 13)]
