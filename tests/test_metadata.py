"""What a picture's file says beside its pixels arrives byte for byte where the format can hold it."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from concertormer_jax.data import tiff
from concertormer_jax.data.images import decode_bytes, decode_file, image_size
from concertormer_jax.data.metadata import png_chunk
from concertormer_jax.photos import photo_io
from concertormer_jax.photos.photo_io import losses, read_photo, write_photo

# What a camera writes, in its own order of bytes: text that is not ASCII, a maker's note, a place, a thumbnail.
MAKER = "Fotoğraf Mühle 写真".encode()
COMMENT = b"UNICODE\0" + "grüße".encode("utf-16-le")
NOTE = bytes(range(256))
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def exif_block(order="<", orientation=6, thumbnail=True):
    entry = tiff.Entry
    number = struct.pack(order + "H", orientation)
    block = tiff.exif_block(
        {
            ExifTags.Base.Make: entry(2, len(MAKER) + 1, MAKER + b"\0"),
            ExifTags.Base.Orientation: entry(3, 1, number),
            ExifTags.Base.XResolution: entry(5, 1, struct.pack(order + "II", 300, 1)),
            ExifTags.Base.Copyright: entry(2, 6, "© me\0".encode()),
            tiff.EXIF: entry(
                4,
                1,
                b"",
                directory={
                    ExifTags.Base.UserComment: entry(7, len(COMMENT), COMMENT),
                    ExifTags.Base.MakerNote: entry(7, len(NOTE), NOTE),
                },
            ),
            tiff.GPS: entry(
                4, 1, b"", directory={1: entry(2, 2, b"N\0"), 2: entry(5, 3, struct.pack(order + "6I", *range(6)))}
            ),
        },
        order,
    )
    if not thumbnail:
        return block
    small = b"\xff\xd8thumbnail of before\xff\xd9"
    second = len(block)
    (count,) = struct.unpack_from(order + "H", block, 8)
    block = bytearray(block + bytes(30) + small)
    struct.pack_into(order + "I", block, 10 + 12 * count, second)
    values = (2, 0x201, 4, 1, second + 30, 0x202, 4, 1, len(small), 0)
    struct.pack_into(order + "HHHIIHHIII", block, second, *values)
    return bytes(block)


def xmp(orientation=6):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{orientation}" dc:title="ğ 写"/>'.encode()


@functools.cache  # a profile holds the second of its creation
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photo_file(path, exif=b"", icc_profile=b"", packet=b"", dpi=None):
    options = {"exif": exif and b"Exif\0\0" + exif, "icc_profile": icc_profile, "xmp": packet, "dpi": dpi}
    options = {name: value for name, value in options.items() if value}
    if path.suffix == ".tif":
        tags = [(274, 3, 1, 6, True), (315, 2, len(MAKER) + 1, MAKER + b"\0", True)]
        tags += [(700, 1, len(packet), packet, True)] if packet else []
        tifffile.imwrite(path, PIXELS, photometric="rgb", metadata=None, iccprofile=icc_profile or None, extratags=tags)
        return
    file = io.BytesIO()
    quality = {".webp": {"lossless": True}, ".jpg": {"quality": 98}}.get(path.suffix, {})
    if path.suffix == ".png":
        options.pop("xmp", None)
    Image.fromarray(PIXELS).save(
        file, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix], **quality, **options
    )
    content = file.getvalue()
    if path.suffix == ".png" and packet:
        content = with_chunks(content, [png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)])
    path.write_bytes(content)


def with_chunks(png, chunks, behind_the_pixels=False):
    place = len(png) - 12 if behind_the_pixels else 33
    return png[:place] + b"".join(chunks) + png[place:]


def restored(tmp_path, source, suffix):
    photo = read_photo(source)
    result = tmp_path / f"out{suffix}"
    write_photo(result, photo)
    return photo, result


def entries_of(exif):
    head = tiff.header(exif)
    return tiff.read_directory(exif, head, head.first)[0]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp"])
def test_exif_is_passed_through(tmp_path, source, target, order):
    given = exif_block(order)
    photo_file(tmp_path / f"in{source}", given, profile(), xmp())
    photo, result = restored(tmp_path, tmp_path / f"in{source}", target)
    assert photo.rgb.shape == (40, 24, 3)
    assert photo.notes == ()
    assert losses(photo, result) == ()
    kept = decode_file(result).metadata
    assert decode_file(result).samples.shape == (40, 24, 3), "turned upright once"
    found, before = entries_of(kept.exif), entries_of(given)
    assert found[ExifTags.Base.Make].value == MAKER + b"\0"
    for directory in (tiff.EXIF, tiff.GPS):
        values = [{tag: entry.value for tag, entry in tags[directory].directory.items()} for tags in (found, before)]
        assert values[0] == values[1]
    assert tiff.orientation(kept.exif) == 1
    assert kept.icc_profile == profile()
    assert kept.xmp == xmp(1)
    assert b"thumbnail of before" not in result.read_bytes()
    with Image.open(result) as image:  # as other software sees it
        assert image.getexif()[ExifTags.Base.Orientation] == 1
        assert image.getexif().get_ifd(tiff.EXIF)[ExifTags.Base.MakerNote] == NOTE
        assert image.info["icc_profile"] == profile()
    if target != ".tif":
        expected = bytearray(given)
        place = before[ExifTags.Base.Orientation].place
        expected[place : place + 2] = struct.pack(order + "H", 1)
        assert len(kept.exif) == len(given)
        until = len(exif_block(order, thumbnail=False))
        count = struct.unpack_from(order + "H", given, 8)[0]
        expected[10 + 12 * count : 14 + 12 * count] = bytes(4)
        assert kept.exif[:until] == expected[:until], "nothing else was changed"


@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
def test_the_tags_of_a_tiff_are_passed_through(tmp_path, target):
    photo_file(tmp_path / "in.tif", icc_profile=profile(), packet=xmp())
    photo, result = restored(tmp_path, tmp_path / "in.tif", target)
    kept = decode_file(result).metadata
    assert photo.rgb.shape == decode_file(result).samples.shape == (40, 24, 3)
    assert entries_of(kept.exif)[315].value == MAKER + b"\0"
    assert (kept.icc_profile, kept.xmp) == (profile(), xmp(1))
    assert not {256, 257, 258, 259, 273, 279} & entries_of(photo.metadata.exif).keys()


def test_the_chunks_of_a_png_are_passed_through(tmp_path):
    chunks = [
        png_chunk(b"gAMA", struct.pack(">I", 45455)),
        png_chunk(b"cHRM", struct.pack(">8I", *range(8))),
        png_chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
        png_chunk(b"tEXt", b"Title\0caf\xe9"),
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"long " * 99)),
        png_chunk(b"iTXt", b"Author\0\0\0de\0Autor\0" + "Ğ写".encode()),
        png_chunk(b"tIME", bytes(7)),
    ]
    for bits in (8, 16):
        photo_file(tmp_path / "in.png")
        content = (tmp_path / "in.png").read_bytes()
        if bits == 16:
            content = photo_io.deep_png(PIXELS.astype(np.uint16) * 257)
        (tmp_path / "in.png").write_bytes(with_chunks(content, chunks))
        photo, result = restored(tmp_path, tmp_path / "in.png", ".png")
        assert photo.bits == bits
        for chunk in chunks:
            assert result.read_bytes().count(chunk) == 1
        assert 'tEXt "Title"' in losses(photo, "out.jpg")[-1]
        _, result = restored(tmp_path, tmp_path / "in.png", ".jpg")
        with Image.open(result) as image:
            assert image.info["dpi"] == (300, 300)


def test_the_segments_of_a_jpeg_are_passed_through(tmp_path):
    iptc = b"8BIM\x04\x04\0\0\0\0\0\x04name"
    thumbnail = b"8BIM\x04\x0c\0\0\0\0\0\x05small\0"
    segments = [
        (0xFE, "first comment ğ".encode()),
        (0xFE, b"second \xff comment"),
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)),
    ]
    photo_file(tmp_path / "in.jpg", exif_block(), dpi=(72, 72))
    content = (tmp_path / "in.jpg").read_bytes()
    added = b"".join(struct.pack(">BBH", 255, kind, len(data) + 2) + data for kind, data in segments)
    photoshop = b"Photoshop 3.0\0" + thumbnail + iptc
    added += struct.pack(">BBH", 255, 0xED, len(photoshop) + 2) + photoshop
    (tmp_path / "in.jpg").write_bytes(content[:20] + added + content[20:])
    photo, result = restored(tmp_path, tmp_path / "in.jpg", ".jpg")
    for _, data in segments:
        assert result.read_bytes().count(data) == 1
    assert b"Photoshop 3.0\0" + iptc in result.read_bytes()
    assert b"small" not in result.read_bytes()
    with Image.open(result) as image:
        image.load()
        assert image.info["dpi"] == (72, 72)
    assert "comment" in losses(photo, "a.png")[0]


@pytest.mark.parametrize("behind", [False, True])
def test_orientation_is_found_wherever_it_stands(tmp_path, behind):
    photo_file(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    block = b"Exif\0\0" + exif_block(thumbnail=False)
    profile_text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    for chunk in (
        png_chunk(b"eXIf", exif_block()),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile_text)),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp())),
    ):
        path = tmp_path / "a.png"
        path.write_bytes(with_chunks(plain, [chunk], behind))
        assert image_size(path) == (40, 24)
        _, result = restored(tmp_path, path, ".png")
        assert image_size(result) == (40, 24)
        with Image.open(result) as image:
            image.load()
            assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_text_and_profiles_of_more_than_a_megabyte_are_no_fault(tmp_path):
    large = np.random.default_rng(0).bytes(3_000_000)
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(large.hex().encode()))
    photo_file(tmp_path / "in.png", icc_profile=profile() + large)
    (tmp_path / "in.png").write_bytes(with_chunks((tmp_path / "in.png").read_bytes(), [text]))
    photo, result = restored(tmp_path, tmp_path / "in.png", ".png")
    assert text in result.read_bytes()
    assert decode_file(result).metadata.icc_profile == profile() + large
    np.testing.assert_array_equal(np.rint(photo.rgb * 255), PIXELS)


def test_what_is_too_long_for_a_jpeg_is_left_out_and_that_is_said(tmp_path):
    photo_file(tmp_path / "in.png", packet=xmp() + b" " * 70_000)
    photo, result = restored(tmp_path, tmp_path / "in.png", ".jpg")
    assert losses(photo, result) == ("JPEG holds at most 64 kB of XMP; it is left out.",)
    assert decode_file(result).metadata.xmp == b""


def test_the_profile_of_cmyk_does_not_come_with_its_rgb():
    inks = np.zeros((8, 8, 4), np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, inks, photometric="separated", iccprofile=profile(), metadata=None)
    decoded = decode_bytes(file.getvalue(), "a.tif")
    assert decoded.metadata.icc_profile == b""
    assert "colours other than RGB" in decoded.notes[0]


def test_the_comment_of_a_gif_is_missed_aloud(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "in.gif", comment=b"hello")
    assert losses(read_photo(tmp_path / "in.gif"), "a.png") == ("PNG cannot hold its comment; left out.",)


def test_damaged_directories_are_refused_in_time():
    block = exif_block()
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(block)
        for place in rng.integers(0, len(block), 3):
            damaged[place] = rng.integers(256)
        try:
            changed = tiff.for_upright_picture(bytes(damaged))
        except ValueError:
            continue
        assert len(changed) == len(block)


def test_entries_that_share_their_bytes_do_not_fill_the_memory():
    entry = tiff.Entry(7, 5000, bytes(5000))
    block = bytearray(tiff.exif_block({40000 + number: entry for number in range(50)}, "<"))
    (first,) = struct.unpack_from("<I", block, 18)
    for number in range(50):
        struct.pack_into("<I", block, 18 + 12 * number, first)
    with pytest.raises(ValueError, match="over others"):
        entries_of(bytes(block[: first + 5000]))


def test_what_is_left_out_is_named_shortly(tmp_path):
    photo_file(tmp_path / "in.png")
    chunks = [png_chunk(b"tEXt", b"k" * 100 + bytes([48 + number]) * 5000 + b"\0text") for number in range(30)]
    chunks += [png_chunk(b"tEXt", b"key %d\0text" % number) for number in range(30)]
    (tmp_path / "in.png").write_bytes(with_chunks((tmp_path / "in.png").read_bytes(), chunks))
    (said,) = losses(read_photo(tmp_path / "in.png"), "a.jpg")
    assert said.endswith(" and 21 more; left out.")
    assert len(said) < 1000
