"""TIFF: every way of storing pixels comes out as it was put in, for training and restoration, or is refused by name."""

import io
import itertools

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from concertormer_jax.data.images import decode_bytes, decode_file, decode_rgb, image_size, read_rgb
from concertormer_jax.photos.photo_io import read_photo, write_photo
from concertormer_jax.runtime.errors import UserError

HEIGHT, WIDTH = 50, 70
# name: (photometric interpretation, channels, what the extra ones are)
KINDS = {
    "grey": ("minisblack", 1, ()),
    "white is zero": ("miniswhite", 1, ()),
    "RGB": ("rgb", 3, ()),
    "RGB, alpha": ("rgb", 4, ("unassalpha",)),
    "grey, alpha": ("minisblack", 2, ("unassalpha",)),
    "CMYK": ("separated", 4, ()),
    "palette": ("palette", 1, ()),
}
PALETTE = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 257
TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


def gradient(channels, bits):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    shares = [rows / HEIGHT, columns / WIDTH, (rows + columns) / (HEIGHT + WIDTH), 0.3 + columns / WIDTH / 2]
    return np.rint(np.stack(shares[:channels], axis=2) * (2**bits - 1)).astype(f"u{bits // 8}")


def tiff(samples, planes="contig", orientation=1, order="<", big=False, pages=1, **options):
    """Encode [H, W, C] by a program that is not ours."""
    if planes == "separate":
        samples = np.moveaxis(samples, 2, 0)
    elif samples.shape[2] == 1:
        samples, planes = samples[:, :, 0], None
    turned = [(274, 3, 1, orientation, True)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
        for page in range(pages):
            stored = samples if page == 0 else np.zeros_like(samples)
            writer.write(stored, planarconfig=planes, metadata=None, extratags=turned, contiguous=False, **options)
    return file.getvalue()


def displayed(kind, samples, bits):
    if kind == "palette":
        return (PALETTE >> 8).astype(np.uint8)[:, samples[:, :, 0]].transpose(1, 2, 0)
    if kind == "white is zero":
        return 2**bits - 1 - samples
    if kind == "CMYK":
        return np.rint((2.0**bits - 1 - samples[:, :, :3]) * (1 - samples[:, :, 3:] / (2.0**bits - 1)))
    return samples


def forms():
    for kind, bits, planes, compression in itertools.product(
        KINDS, (8, 16), ("contig", "separate"), (None, "lzw", "zlib", "jpeg")
    ):
        if planes == "separate" and KINDS[kind][1] == 1:
            continue
        if kind == "palette" and bits == 16:
            continue
        if compression == "jpeg" and (bits == 16 or kind not in ("grey", "RGB")):
            continue
        yield kind, bits, planes, compression


@pytest.mark.parametrize(("kind", "bits", "planes", "compression"), [*forms()])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_form_is_read_right(kind, bits, planes, compression, every):
    """Every byte order, strips and tiles, classic and BigTIFF, one page and several, turned in one way or in all."""
    photometric, channels, extra = KINDS[kind]
    samples = gradient(channels, bits)
    expected = displayed(kind, samples, bits)
    layouts = [*itertools.product("<>", (None, (16, 32)), (False, True), (1, 2))]
    some = zip(layouts, np.random.default_rng(0).permutation(16) % 8 + 1, strict=True)
    for (order, tile, big, pages), orientation in itertools.product(layouts, TURNED) if every else some:
        content = tiff(
            samples,
            planes,
            int(orientation),
            order,
            big,
            pages,
            photometric=photometric,
            extrasamples=extra,
            compression=compression,
            colormap=PALETTE if kind == "palette" else None,
            tile=tile,
            rowsperstrip=None if tile else 16,
        )
        decoded = decode_bytes(content, "a.tif")
        assert decoded.frames == pages
        assert decoded.samples.dtype == samples.dtype
        wanted = TURNED[orientation](expected)
        assert decoded.samples.shape == wanted.shape
        difference = np.abs(decoded.samples.astype(float) - wanted)
        if compression == "jpeg":
            assert difference.mean() < 3
        else:
            assert difference.max() <= (1 if kind == "CMYK" else 0)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("kind", "planes"), [("grey", "contig"), ("RGB", "contig"), ("RGB", "separate"), ("RGB, alpha", "contig")]
)
def test_training_and_restoration_see_one_picture(tmp_path, orientation, bits, kind, planes):
    path = tmp_path / "a.tif"
    photometric, channels, extra = KINDS[kind]
    samples = gradient(channels, bits)
    path.write_bytes(tiff(samples, planes, orientation, photometric=photometric, extrasamples=extra))
    photo = read_photo(path)
    assert image_size(path) == photo.rgb.shape[:2]
    np.testing.assert_array_equal(read_rgb(path), np.rint(photo.rgb * 255))
    np.testing.assert_array_equal(read_rgb(path), decode_rgb(path.read_bytes(), "a.tif"))
    wanted = TURNED[orientation](samples)[:, :, :3]
    np.testing.assert_array_equal(np.rint(photo.rgb * (2**bits - 1)), np.broadcast_to(wanted, photo.rgb.shape))


@pytest.mark.parametrize("big", [False, True])
def test_16_bits_in_separate_planes_are_restored_as_they_are(tmp_path, big):
    (tmp_path / "in.tif").write_bytes(tiff(gradient(3, 16), "separate", big=big, photometric="rgb"))
    write_photo(tmp_path / "out.tif", read_photo(tmp_path / "in.tif"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), gradient(3, 16))


def test_fewer_bits_are_spread_over_8_or_16():
    for bits, expected in ((1, [0, 255]), (2, [0, 85, 170, 255]), (4, list(range(0, 256, 17)))):
        values = np.arange(2**bits, dtype=np.uint8).reshape(1, -1).repeat(2, axis=0)
        if bits == 1:
            content = tiff(values.astype(bool)[:, :, None], photometric="minisblack")
        else:
            header = tiff(np.packbits(_bits(values, bits), axis=1)[:, :, None], photometric="minisblack")
            content = _patched(header, width=2**bits, bits=bits)
        assert decode_bytes(content, "a.tif").samples[1, :, 0].tolist() == expected
    values = np.array([[0, 1, 2048, 4095]], np.uint16)
    packed = np.packbits(_bits(values, 12), axis=1)[:, :, None]
    content = _patched(tiff(packed, photometric="minisblack"), width=4, bits=12)
    assert decode_bytes(content, "a.tif").samples[0, :, 0].tolist() == [0, 16, 32776, 65535]


def _bits(values, count):
    return (values[:, :, None] >> np.arange(count)[::-1] & 1).reshape(len(values), -1).astype(np.uint8)


def _patched(content, width, bits):
    """Say of a grey file of 8 bits that its bytes are so many pixels of so many bits."""
    file = io.BytesIO(content)
    with tifffile.TiffFile(file, mode="r+b") as opened:
        opened.pages[0].tags[256].overwrite(width)
        opened.pages[0].tags[258].overwrite(bits)
    return file.getvalue()


def test_colours_that_alpha_was_multiplied_into_are_divided_by_it():
    colour, alpha = gradient(3, 8), np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    alpha[0, 0] = 0
    stored = np.concatenate([np.rint(colour * (alpha / 255)).astype(np.uint8), alpha], axis=2)
    decoded = decode_bytes(tiff(stored, photometric="rgb", extrasamples=("assocalpha",)), "a.tif").samples
    np.testing.assert_array_equal(decoded[:, :, 3:], alpha)
    assert np.abs(decoded[:, :, :3].astype(int) - colour)[alpha[:, :, 0] > 0].max() <= 1


def test_extra_channels_are_left_out_and_that_is_said():
    stored = np.concatenate([gradient(3, 8), gradient(3, 8)], axis=2)
    decoded = decode_bytes(tiff(stored, photometric="rgb", extrasamples=(0, 0, 0)), "a.tif")
    np.testing.assert_array_equal(decoded.samples, gradient(3, 8))
    assert decoded.notes == ("holds 3 extra channels beside the picture; left out.",)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_opencv_writes_is_read(bits, channels):
    samples = gradient(channels, bits)
    _, encoded = cv2.imencode(".tif", samples[:, :, [2, 1, 0, 3][:channels]] if channels > 1 else samples)
    np.testing.assert_array_equal(decode_bytes(encoded.tobytes(), "a.tif").samples, samples)


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        ("1", "group4"),
        *itertools.product(
            ["1", "L", "LA", "RGB", "RGBA", "CMYK", "P", "LAB"], [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]
        ),
    ],
)
def test_what_pillow_writes_is_read(mode, compression):
    image = Image.fromarray(gradient(3, 8))
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    expected = np.asarray(image.convert({"1": "L", "CMYK": "RGB", "P": "RGB", "LAB": "RGB"}.get(mode, mode)))
    np.testing.assert_array_equal(decode_bytes(file.getvalue(), "a.tif").samples.squeeze(), expected)


def refused():
    grey = np.ones((16, 16, 1))
    yield "32-bit floating-point", tiff(grey.astype(np.float32), photometric="minisblack")
    yield "16-bit floating-point", tiff(grey.astype(np.float16), photometric="minisblack")
    yield "32-bit integer", tiff(grey.astype(np.uint32), photometric="minisblack")
    yield "16-bit signed", tiff(grey.astype(np.int16), photometric="minisblack")
    yield "stored as CFA", tiff(grey.astype(np.uint16), photometric="cfa")
    yield "stored as LINEAR_RAW", tiff(gradient(3, 16), photometric="linear_raw")
    yield "YCbCr without JPEG", tiff(gradient(3, 8), photometric="ycbcr", subsampling=(1, 1))
    yield "camera's raw", _with_tag(50706, 1, 4, b"\1\4\0\0")
    yield "inks are not CMYK", _with_tag(332, 3, 1, 2, samples=gradient(4, 8), photometric="separated")
    yield "differ in their bits", _with_tag(258, 3, 3, (5, 6, 5))
    volume = io.BytesIO()
    tifffile.imwrite(volume, np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16), metadata=None)
    yield "a volume", volume.getvalue()


def _with_tag(tag, kind, count, value, samples=None, photometric="rgb"):
    content = io.BytesIO()
    samples = gradient(3, 8) if samples is None else samples
    extra = [] if tag == 258 else [(tag, kind, count, value, True)]
    tifffile.imwrite(content, samples, photometric=photometric, metadata=None, extratags=extra)
    if tag == 258:
        content.seek(0)
        with tifffile.TiffFile(content, mode="r+b") as opened:
            opened.pages[0].tags[258].overwrite(value)
    return content.getvalue()


@pytest.mark.parametrize(("reason", "content"), [*refused()])
def test_what_cannot_be_read_right_is_refused_by_name(tmp_path, reason, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for read in (read_rgb, read_photo):
        with pytest.raises(UserError, match=rf"a\.tif: .*{reason}"):
            read(path)


def test_a_small_copy_in_front_is_not_taken_for_the_picture():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.zeros((5, 7, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
        writer.write(gradient(3, 8), photometric="rgb", metadata=None)
    decoded = decode_bytes(file.getvalue(), "a.tif")
    np.testing.assert_array_equal(decoded.samples, gradient(3, 8))
    assert decoded.frames == 1
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:  # as cameras' raw files are
        writer.write(np.zeros((5, 7, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(gradient(1, 16)[:, :, 0], photometric="cfa", metadata=None)
    with pytest.raises(UserError, match=r"raw\.tif: it is a camera's raw file"):
        decode_bytes(file.getvalue(), "raw.tif")


def test_of_several_pages_restoration_takes_the_first_and_training_none(tmp_path):
    path = tmp_path / "pages.tif"
    path.write_bytes(tiff(gradient(3, 8), pages=3, photometric="rgb"))
    assert read_photo(path).notes == ("holds 3 frames or pages; only the first is restored.",)
    for function in (read_rgb, image_size):
        with pytest.raises(UserError, match=r"pages\.tif: holds 3 pictures"):
            function(path)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "jpeg", "packbits"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_truncated_files_are_never_read_in_part(tmp_path, compression, planes):
    samples = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    content = tiff(samples, planes, photometric="rgb", compression=compression, rowsperstrip=16)
    path = tmp_path / "cut.tif"
    for cut in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"cut\.tif: "):
            decode_file(path)
