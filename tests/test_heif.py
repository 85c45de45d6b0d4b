"""HEIC photographs, by the extra `heif`."""

import numpy as np
import pillow_heif
import pytest
from fake_model import fake_model
from PIL import Image

from concertormer_jax.data import images
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.photos.photo_io import read_photo
from concertormer_jax.photos.restoring import plan, restore_files
from concertormer_jax.runtime.errors import UserError

MAKER = 0x010F


@pytest.fixture
def photo(tmp_path):
    """A HEIC of 40x30 pixels with EXIF."""
    exif = Image.Exif()
    exif[MAKER] = "a telephone"
    ramp = np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None] * np.ones((30, 1, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(ramp).save(tmp_path / "in" / "a.heic", exif=exif, quality=95)
    return tmp_path / "in" / "a.heic"


def test_a_heic_is_restored_with_its_exif(photo, tmp_path):
    assert read_photo(photo).rgb.shape == (30, 40, 3)
    restorer = Restorer(fake_model(), tlc="off", log=lambda line: None)
    restore_files(restorer, plan(photo, tmp_path / "out.jpg"), log=lambda line: None)
    with Image.open(tmp_path / "out.jpg") as image, Image.open(photo) as original:
        assert image.getexif()[MAKER] == "a telephone"
        assert np.abs(np.asarray(image, float) - np.asarray(original, float)).mean() < 3
    restore_files(restorer, plan(photo.parent, tmp_path / "out"), log=lambda line: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_more_than_eight_bits_are_said_to_become_eight(tmp_path):
    samples = np.arange(30 * 40 * 3, dtype=np.uint16).reshape(30, 40, 3) * 18
    pillow_heif.from_bytes("RGB;16", (40, 30), samples.tobytes()).save(tmp_path / "deep.heic")
    photo = read_photo(tmp_path / "deep.heic")
    assert photo.bits == 8
    assert any("bits per channel, of which 8 are read" in note for note in photo.notes)


def test_without_the_package_the_sentence_names_it(photo, monkeypatch):
    monkeypatch.setattr(images, "_PILLOW_FORMATS", ["PNG", "JPEG"])
    with pytest.raises(UserError, match=r"a\.heic: is a HEIF, .*: pip install pillow-heif \(the extra `heif`\)"):
        read_photo(photo)


def test_a_damaged_heic_does_not_ask_for_a_package_that_is_there(photo):
    photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a\.heic: (?!.*pip install)"):
        read_photo(photo)
