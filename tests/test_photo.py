"""Photographs of every format and mode: read as displayed, written back as they were."""

import functools
import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from concertormer_jax.data.images import decode_file
from concertormer_jax.data.metadata import Metadata, into_png
from concertormer_jax.photos import photo_io
from concertormer_jax.photos.photo_io import Photo, losses, read_photo, write_photo
from concertormer_jax.runtime.errors import UserError

SIZE = (21, 34)


def gradient(channels, peak=255):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    planes = [rows / SIZE[0], columns / SIZE[1], (rows + columns) / sum(SIZE), 0.3 + 0.5 * columns / SIZE[1]]
    return np.rint(np.stack(planes[:channels], axis=2) * peak).astype(np.uint8 if peak == 255 else np.uint16)


@functools.cache  # a profile holds the second of its creation
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation):
    information = Image.Exif()
    information[ExifTags.Base.Orientation] = orientation
    information[ExifTags.Base.Make] = "Maker"
    information.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    return information


def deep_file(path, samples, exif=b"", icc_profile=b""):
    """Write uint16 [H, W, C] to a PNG or TIFF."""
    metadata = Metadata(exif.removeprefix(b"Exif\0\0"), icc_profile)
    parts = (
        [into_png(photo_io.deep_png(samples), metadata)]
        if path.suffix == ".png"
        else photo_io.tiff_parts(samples, metadata)
    )
    path.write_bytes(b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts))


def metadata_of(path):
    with Image.open(path) as image:
        image.load()
        information = image.getexif()
        return {
            "icc_profile": image.info.get("icc_profile"),
            "make": information.get(ExifTags.Base.Make),
            "orientation": information.get(ExifTags.Base.Orientation, 1),
            "date": information.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal),
        }


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *itertools.product([".png", ".tif", ".tiff", ".webp"], ["L", "RGB", "LA", "RGBA"]),
        *itertools.product([".jpg", ".jpeg"], ["L", "RGB"]),
    ],
)
def test_8_bits_come_back_in_the_same_mode(tmp_path, suffix, mode):
    samples = gradient(len(mode))
    if mode.endswith("A"):
        samples[:5, :, -1] = 0  # the colours below full transparency are kept too
    options = {".webp": {"lossless": True, "exact": True}, ".jpg": {"quality": 98}, ".jpeg": {"quality": 98}}.get(
        suffix, {}
    )
    Image.fromarray(samples.squeeze()).save(tmp_path / f"in{suffix}", **options)
    photo = read_photo(tmp_path / f"in{suffix}")
    assert photo.rgb.dtype == np.float32
    assert photo.rgb.shape == (*SIZE, 3)
    assert (photo.alpha is not None) == mode.endswith("A")
    write_photo(tmp_path / f"out{suffix}", photo)
    with Image.open(tmp_path / f"in{suffix}") as before, Image.open(tmp_path / f"out{suffix}") as after:
        assert after.mode == before.mode
        assert after.format == before.format
        difference = np.abs(np.asarray(after, int) - np.asarray(before, int))
    assert difference.mean() <= (1 if suffix.startswith(".j") else 0)


@pytest.mark.parametrize(("suffix", "channels"), [*itertools.product([".png", ".tif"], [1, 2, 3, 4])])
def test_16_bits_come_back_exactly(tmp_path, suffix, channels):
    samples = gradient(channels, peak=65535)
    samples[0, 0] = 12345
    colours = profile() if channels > 2 else b""  # an RGB profile does not belong into a grey file
    source, result = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    deep_file(source, samples, exif(1).tobytes(), colours)
    photo = read_photo(source)
    assert (photo.bits, photo.grey) == (16, channels <= 2)
    np.testing.assert_allclose(photo.rgb[0, 0], 12345 / 65535, rtol=1e-6)
    write_photo(result, photo)
    np.testing.assert_array_equal(decode_file(result).samples, samples)
    assert decode_file(result).metadata == decode_file(source).metadata
    if (suffix, channels) == (".tif", 2):  # which Pillow does not read
        return
    assert metadata_of(result) == metadata_of(source)
    if (suffix, channels) == (".tif", 4):
        with Image.open(result) as image:
            assert image.tag_v2[338] == (2,), "the fourth channel is alpha"
    assert metadata_of(result)["make"] == "Maker"
    assert (metadata_of(result)["icc_profile"] or b"") == colours


def test_16_bit_files_of_other_programs_are_read(tmp_path):
    grey = gradient(1, peak=65535)[:, :, 0]
    for suffix in (".png", ".tif"):
        Image.fromarray(grey).save(tmp_path / f"grey{suffix}")
        photo = read_photo(tmp_path / f"grey{suffix}")
        assert photo.grey
        np.testing.assert_array_equal(np.rint(photo.rgb[:, :, 1] * 65535), grey)
        colours = gradient(3, peak=65535)
        cv2.imwrite(str(tmp_path / f"colour{suffix}"), colours[:, :, ::-1])
        photo = read_photo(tmp_path / f"colour{suffix}")
        assert not photo.grey
        np.testing.assert_array_equal(np.rint(photo.rgb * 65535), colours)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset_and_the_rest_kept(tmp_path, suffix, orientation):
    source, result = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {"quality": 98, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(gradient(3)).save(source, exif=exif(orientation).tobytes(), icc_profile=profile(), **options)
    photo = read_photo(source)
    with Image.open(source) as image:
        displayed = np.asarray(ImageOps.exif_transpose(image))
    assert photo.rgb.shape == displayed.shape
    np.testing.assert_array_equal(np.rint(photo.rgb * 255), displayed)
    write_photo(result, photo)
    with Image.open(result) as image:
        assert image.size == displayed.shape[1::-1]
    expected = {"icc_profile": profile(), "make": "Maker", "orientation": 1, "date": "2024:05:06 07:08:09"}
    assert metadata_of(result) == expected


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_turned_too(tmp_path, suffix):
    samples = gradient(3, peak=65535)
    deep_file(tmp_path / f"in{suffix}", samples, exif(6).tobytes())
    photo = read_photo(tmp_path / f"in{suffix}")
    np.testing.assert_array_equal(np.rint(photo.rgb * 65535), np.rot90(samples, -1))
    write_photo(tmp_path / f"out{suffix}", photo)
    np.testing.assert_array_equal(decode_file(tmp_path / f"out{suffix}").samples, np.rot90(samples, -1))
    assert metadata_of(tmp_path / f"out{suffix}")["orientation"] == 1


def test_the_storage_of_a_tiff_does_not_leak_into_another_format(tmp_path):
    Image.fromarray(gradient(3)).save(tmp_path / "in.tif", exif=exif(1), compression="tiff_lzw")
    photo = read_photo(tmp_path / "in.tif")
    write_photo(tmp_path / "out.jpg", photo)
    write_photo(tmp_path / "out.tif", photo)
    with Image.open(tmp_path / "out.jpg") as image:
        assert set(image.getexif()) <= {
            ExifTags.Base.Orientation,
            ExifTags.Base.Make,
            ExifTags.Base.ExifOffset,
            ExifTags.Base.XResolution,
            ExifTags.Base.YResolution,
            ExifTags.Base.ResolutionUnit,
        }
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.tif")), gradient(3))


def test_jpeg_keeps_the_resolution_of_colour_and_a_high_quality(tmp_path):
    write_photo(tmp_path / "out.jpg", Photo(rgb=gradient(3) / np.float32(255)))
    with Image.open(tmp_path / "out.jpg") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
        assert max(image.quantization[0]) < 15


def test_palettes_cmyk_and_one_bit_become_what_is_displayed(tmp_path):
    colours = Image.fromarray(gradient(4)[:, :, :3])
    colours.quantize(16).save(tmp_path / "palette.png")
    palette = read_photo(tmp_path / "palette.png")
    assert not palette.grey
    np.testing.assert_array_equal(np.rint(palette.rgb * 255), np.asarray(colours.quantize(16).convert("RGB")))
    colours.convert("CMYK").save(tmp_path / "cmyk.jpg", icc_profile=profile())
    cmyk = read_photo(tmp_path / "cmyk.jpg")
    assert np.abs(cmyk.rgb * 255 - np.asarray(colours)).mean() < 8
    assert cmyk.metadata.icc_profile == b""
    assert "colours other than RGB" in cmyk.notes[0]
    colours.convert("1").save(tmp_path / "bits.png")
    assert read_photo(tmp_path / "bits.png").grey
    transparent = colours.quantize(16)
    transparent.save(tmp_path / "transparent.png", transparency=3)
    alpha = read_photo(tmp_path / "transparent.png").alpha
    np.testing.assert_array_equal(alpha == 0, np.asarray(transparent) == 3)


def test_values_are_clipped_and_rounded(tmp_path):
    rgb = np.array([[[-0.5, 0.0, 0.4999 / 255], [0.5001 / 255, 1.0, 7.0]]], np.float32)
    write_photo(tmp_path / "out.png", Photo(rgb=rgb))
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[[0, 0, 0], [1, 255, 255]]]


def test_what_a_format_cannot_hold_is_said(tmp_path):
    deep = Photo(np.full((4, 5, 3), 0.5, np.float32), alpha=np.full((4, 5), 40000, np.uint16), bits=16)
    assert [len(losses(deep, name)) for name in ("a.png", "a.tif", "a.webp", "a.jpg")] == [0, 0, 1, 2]
    write_photo(tmp_path / "a.webp", deep)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.getpixel((0, 0)) == (128, 128, 128, 156)
    write_photo(tmp_path / "a.jpg", deep)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "RGB"


def test_of_several_pages_the_first_is_read_and_that_is_said(tmp_path):
    pages = [Image.fromarray(gradient(3)), Image.new("RGB", (34, 21))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    photo = read_photo(tmp_path / "pages.tif")
    assert "2 frames or pages" in photo.notes[0]
    np.testing.assert_array_equal(np.rint(photo.rgb * 255), gradient(3))
    pages[0].save(tmp_path / "one.tif")
    assert read_photo(tmp_path / "one.tif").notes == ()


def test_a_damaged_exif_block_is_left_out_and_that_is_said(tmp_path):
    beyond_the_end = struct.pack("<HHHII4x", 1, ExifTags.Base.Make, 2, 300, 1000)
    Image.fromarray(gradient(3)).save(tmp_path / "in.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + beyond_the_end)
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.metadata.exif == b""
    assert "EXIF" in photo.notes[0]


def test_bad_files_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    broken = {
        "truncated.png": buffer.getvalue()[:3000],
        "text.jpg": b"this is no picture",
        "empty.webp": b"",
        "deep.png": photo_io.deep_png(gradient(3, peak=65535))[:200],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(gradient(3)).save(tmp_path / "other.ppm")
    for name in [*broken, "float.tif", "other.ppm", "missing.png"]:
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_photo(tmp_path / name)
    with pytest.raises(UserError, match="folder"):
        (tmp_path / "folder.png").mkdir()
        read_photo(tmp_path / "folder.png")


def test_places_that_cannot_be_written_are_named(tmp_path):
    photo = Photo(np.zeros((4, 5, 3), np.float32))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out\.png: cannot be written"):
        write_photo(tmp_path / "file" / "out.png", photo)
    with pytest.raises(UserError, match=r"out\.xyz: unknown picture format"):
        write_photo(tmp_path / "out.xyz", photo)
    with pytest.raises(UserError, match=r"out\.webp: a WEBP has at most 16383 pixels"):
        write_photo(tmp_path / "out.webp", Photo(np.zeros((1, 20000, 3), np.float32)))  # WebP ends at 16383 pixels
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
