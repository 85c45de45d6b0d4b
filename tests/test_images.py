"""Picture files: what is read, what is listed, what is refused."""

import os
import socket
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from concertormer_jax.data.images import decode_file, image_size, list_images, read_rgb, write_png
from concertormer_jax.data.metadata import png_chunk
from concertormer_jax.photos import photo_io
from concertormer_jax.photos.photo_io import read_photo
from concertormer_jax.runtime.errors import UserError


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def test_written_png_reads_back_equal(tmp_path, picture):
    path = tmp_path / "new" / "a.png"
    write_png(path, picture)
    np.testing.assert_array_equal(read_rgb(path), picture)
    assert image_size(path) == (5, 7)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_write_png_refuses_other_arrays(tmp_path, bad):
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "a.png", bad)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_become_rgb(tmp_path, picture, mode):
    path = tmp_path / "a.png"
    Image.fromarray(picture).convert(mode).save(path)
    expected = np.asarray(Image.fromarray(picture).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(read_rgb(path), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)).save(path)
    assert read_rgb(path)[0].tolist() == [[value] * 3 for value in (0, 0, 1, 1, 128, 255)]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:4, :8] = 255  # the top left quarter is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    turned = {1: stored, 3: np.rot90(stored, 2), 6: np.rot90(stored, -1), 8: np.rot90(stored, 1)}[orientation]
    read = read_rgb(path)
    assert read.shape == turned.shape
    assert np.abs(read.astype(int) - turned).mean() < 8
    assert image_size(path) == turned.shape[:2]


def test_missing_file_is_named(tmp_path):
    for function in (read_rgb, image_size):
        with pytest.raises(UserError, match=r"gone\.png: no such file"):
            function(tmp_path / "gone.png")


def test_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("these are notes")
    for function in (read_rgb, image_size):
        with pytest.raises(UserError, match=r"notes\.png: not a picture"):
            function(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cut\{suffix}: "):
        read_rgb(path)


def test_corrupt_pixels_are_named(tmp_path, picture):
    path = tmp_path / "bad.png"
    write_png(path, picture)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 8
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png: cannot be decoded"):
        read_rgb(path)


def test_size_comes_from_the_header_alone(tmp_path):
    path = tmp_path / "cut.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (64, 32)


def test_floating_point_pixels_are_refused(tmp_path):
    path = tmp_path / "depth.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(UserError, match=r"depth\.tif: .*floating-point"):
        read_rgb(path)


def test_listing_is_recursive_sorted_and_of_pictures_only(tmp_path, picture):
    for name in ("b/2.png", "a.PNG", "b/10.png", ".hidden.png", ".cache/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert list_images(tmp_path) == [tmp_path / name for name in ("a.PNG", "b/10.png", "b/2.png")]


def test_listing_follows_links_to_folders(tmp_path, picture):
    write_png(tmp_path / "elsewhere" / "a.png", picture)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "scene").symlink_to(tmp_path / "elsewhere")
    assert list_images(tmp_path / "set") == [tmp_path / "set" / "scene" / "a.png"]


def test_missing_and_empty_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="gone: no such folder"):
        list_images(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no pictures"):
        list_images(tmp_path / "empty")


@pytest.mark.parametrize(
    ("suffix", "size"), [(".png", (48, 32)), (".webp", (48, 32)), (".gif", (48, 32)), (".tif", (48, 32))]
)
def test_several_frames_are_refused_for_training(tmp_path, suffix, size):
    frames = [Image.fromarray(np.full((*size, 3), value, np.uint8)) for value in (0, 100, 200)]
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for function in (read_rgb, image_size):
        with pytest.raises(UserError, match=rf"moving\{suffix}: holds 3 pictures"):
            function(path)
    photo = read_photo(path)
    assert photo.rgb.shape[:2] == size
    assert not photo.rgb.any()
    assert "3 frames" in photo.notes[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".avif", ".webp", ".jpg", ".tif"])
def test_training_sees_what_is_restored(tmp_path, picture, suffix, mode):
    if suffix == ".jpg" and mode in ("RGBA", "P"):
        mode = "CMYK"
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture).convert(mode).save(path)
    np.testing.assert_array_equal(read_rgb(path), np.rint(read_photo(path).rgb * 255))


def test_16_bits_of_colour_are_rounded_alike_for_training_and_restoration(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(photo_io.deep_png(deep))
    np.testing.assert_array_equal(read_rgb(path), np.rint(deep / 257))
    np.testing.assert_array_equal(read_rgb(path), np.rint(read_photo(path).rgb * 255))


def test_16_bit_transparency_by_one_colour_is_seen(tmp_path):
    deep = np.array([[[5], [300]]], np.uint16)
    content = photo_io.deep_png(deep)
    (tmp_path / "a.png").write_bytes(content[:33] + png_chunk(b"tRNS", b"\0\5") + content[33:])
    photo = read_photo(tmp_path / "a.png")
    assert photo.alpha.tolist() == [[0, 65535]]
    assert photo.grey


def test_anything_but_a_regular_file_is_refused_at_once(tmp_path, picture):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))
        for path, kind in (
            (tmp_path / "pipe.png", "a named pipe"),
            (tmp_path / "folder.png", "a folder"),
            (tmp_path / "socket.png", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            for function in (read_rgb, image_size, read_photo):
                with pytest.raises(UserError, match=rf"{path.name}: is {kind}, not a picture"):
                    function(path)
    write_png(tmp_path / "a.png", picture)
    (tmp_path / "link.png").symlink_to("a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "link.png"), picture)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x18ftypheic", "not a picture .*, or its header is corrupt"),
        (b"\0\0\0\x18ftypmif1", "not a picture .*, or its header is corrupt"),
        (b"P6 1 1 255\n\1\2\3", r"not a picture \(PNG, JPEG"),
    ],
)
def test_what_is_no_picture_here_is_told_what_it_needs(tmp_path, start, said):
    (tmp_path / "a.jpg").write_bytes(start)
    for function in (read_rgb, image_size):
        with pytest.raises(UserError, match=rf"a\.jpg: {said}"):
            function(tmp_path / "a.jpg")


def test_the_suffix_does_not_decide(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png", format="BMP")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), picture)


def test_a_photograph_of_200_megapixels_is_no_bomb(tmp_path):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16320, 12240, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b""))
    assert image_size(tmp_path / "a.png") == (12240, 16320)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_more_pixels_than_the_memory_holds_are_refused_with_what_to_do(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b""))
    else:
        Image.new("L", (4, 5)).save(path)
        with tifffile.TiffFile(path, mode="r+b") as opened:
            for tag in (256, 257):
                opened.pages[0].tags[tag].overwrite(2**31 - 1)
    with pytest.raises(UserError, match=rf"a\{suffix}: decoding 2147483647x2147483647 pixels needs .* GiB of memory"):
        read_rgb(path)


def test_a_huge_picture_is_decoded(tmp_path):
    Image.new("1", (13400, 13400), 1).save(tmp_path / "a.png")  # 179.6 million pixels, beyond Pillow's own limit
    pixels = decode_file(tmp_path / "a.png").samples
    assert pixels.shape == (13400, 13400, 1)
    assert pixels[::1000].min() == 255


def test_an_avif_of_more_than_8_bits_loses_some_and_that_is_said(tmp_path):
    deep = np.full((16, 16, 3), 600, np.uint16)
    (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(deep, bitspersample=10))
    assert read_photo(tmp_path / "a.avif").notes == ("has 10 bits per channel, of which 8 are read.",)
    Image.new("RGB", (16, 16)).save(tmp_path / "b.avif")
    assert read_photo(tmp_path / "b.avif").notes == ()
