"""Metadata of picture files as raw bytes, read from every format and put into PNG and JPEG."""

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

from concertormer_jax.data import tiff

_MOST_UNPACKED_BYTES = 2**28  # a small compressed text may unpack to more than the memory
_EXIF_PREFIX = b"Exif\0\0"
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_LONGER_XMP_PREFIX = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP_PREFIX = b"Photoshop 3.0\0"
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_RAW_PROFILES = {b"Raw profile type exif": "exif", b"Raw profile type APP1": "exif", b"Raw profile type xmp": "xmp"}
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([1-8])")
_MOST_DPI = 65535  # the largest that a JPEG can hold
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LONGEST_KEYWORD = 79
_MOST_NAMED = 10  # lost parts in a message
_PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Chunks that hold for the restored picture too. Those on how its pixels were stored (sBIT, bKGD, hIST) do not.
_PNG_KEPT = _PNG_TEXT | {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"pHYs", b"oFFs", b"tIME", b"sPLT"}
_COMMENT, _APP1, _APP13, _START_OF_SCAN = 0xFE, 0xE1, 0xED, 0xDA
_MOST_JPEG_SEGMENT_BYTES = 65533
_THUMBNAIL_RESOURCES = frozenset({1033, 1036})
_ICC, _XMP, _PHOTOSHOP = 34675, 700, 34377
# Tags on how a TIFF stores its pixels, in the same directory as those of EXIF. 37724: Photoshop's layers.
_STORAGE_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 290, 291, 292, 293, 297}
    | {317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 334, 336, 338, 339, 340, 341, 342, 347}
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 37724, 50838, 50839}
)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata that is copied from one file into another.

    exif: an EXIF block from its byte order mark on; icc_profile; xmp: a packet. Each is empty if there is none.
    dpi: dots per inch, horizontally and vertically, or None.
    parts: whole chunks (PNG) or segments (JPEG) that only files of the format `parts_format` can hold; names: what
    messages call the parts.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    parts_format: str = ""
    parts: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def orientation(self) -> int:
        """EXIF's orientation of the stored picture, 1 to 8; 1, upright, if neither EXIF nor XMP has one."""
        if (stated := tiff.orientation(self.exif)) is not None:
            return stated
        found = _XMP_ORIENTATION.search(self.xmp)
        return int(found[2]) if found else 1

    def for_upright_picture(self) -> tuple["Metadata", tuple[str, ...]]:
        """Return the metadata of the upright picture, without EXIF's thumbnail, and a note if EXIF is damaged."""
        exif, dpi, parts = self.exif, self.dpi, self.parts
        notes: tuple[str, ...] = ()
        if exif:
            try:
                exif = tiff.for_upright_picture(exif)
            except ValueError as error:
                exif, notes = b"", (f"its EXIF block is damaged ({error}); it is left out.",)
        if dpi and self.orientation in (5, 6, 7, 8):
            dpi = dpi[::-1]
            parts = tuple(part for part in parts if part[4:8] != b"pHYs")  # `into_png` writes it from `dpi`
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp)
        return dataclasses.replace(self, exif=exif, xmp=xmp, dpi=dpi, parts=parts), notes


NO_METADATA = Metadata()


def of_image(image: Image.Image, file: BinaryIO) -> Metadata:
    """Read the metadata of a picture that Pillow opened from `file`; PNG and JPEG are parsed here, others by Pillow."""
    info = image.info
    icc_profile = b"" if image.mode in ("CMYK", "LAB") else info.get("icc_profile") or b""
    dpi = info.get("dpi")
    if dpi and not all(0 < dots < _MOST_DPI for dots in dpi):
        dpi = None
    if image.format == "PNG":
        return _of_png(file, icc_profile, dpi)
    if image.format in ("JPEG", "MPO"):
        return _of_jpeg(file, icc_profile, dpi)
    exif = (info.get("exif") or b"").removeprefix(_EXIF_PREFIX)
    read = Metadata(exif, icc_profile, _bytes(info.get("xmp")), dpi)
    if comment := info.get("comment"):
        return dataclasses.replace(read, parts_format="GIF", parts=(comment,), names=("comment",))
    return read


def of_tiff(data: bytes, start: int, icc_profile_describes_rgb: bool) -> Metadata:
    """Read the metadata in the directory at `start` of a TIFF: its tags, except those on how pixels are stored.

    icc_profile_describes_rgb: whether the profile holds for the decoded picture. Raises ValueError if the directory is
    damaged.
    """
    head = tiff.header(data)
    entries, _ = tiff.read_directory(data, head, start)
    icc_profile, xmp = (entries.pop(tag, None) for tag in (_ICC, _XMP))
    entries = {tag: entry for tag, entry in entries.items() if tag not in _STORAGE_TAGS}
    if _PHOTOSHOP in entries:
        resources = _without_thumbnails(entries[_PHOTOSHOP].value)
        entries[_PHOTOSHOP] = tiff.Entry(1, len(resources), resources)
    return Metadata(
        exif=tiff.exif_block(entries, head.order) if entries else b"",
        icc_profile=icc_profile.value if icc_profile and icc_profile_describes_rgb else b"",
        xmp=xmp.value if xmp else b"",
    )


def into_png(png: bytes, metadata: Metadata) -> bytes:
    """Put metadata into an encoded PNG that has none."""
    chunks = []
    if metadata.icc_profile:
        chunks.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile)))
    parts = metadata.parts if metadata.parts_format == "PNG" else ()
    chunks += parts
    if metadata.dpi and not any(part[4:8] == b"pHYs" for part in parts):
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in metadata.dpi), 1)))
    if metadata.exif:
        chunks.append(png_chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append(png_chunk(b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp))
    start = len(_PNG_SIGNATURE) + 25  # behind the header
    return b"".join([png[:start], *chunks, png[start:]])


def into_jpeg(jpeg: bytes, metadata: Metadata) -> bytes:
    """Put what Pillow cannot write into an encoded JPEG: comments, IPTC and the rest of a long XMP packet."""
    if metadata.parts_format != "JPEG" or not metadata.parts:
        return jpeg
    start = 2
    while jpeg[start] == 0xFF and 0xE0 <= jpeg[start + 1] <= 0xEF:
        start += 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return b"".join([jpeg[:start], *metadata.parts, jpeg[start:]])


def pillow_options(metadata: Metadata, file_format: str) -> dict[str, Any]:
    """Return the options with which Pillow writes EXIF, profile, XMP and resolution into a JPEG or WebP."""
    options: dict[str, Any] = {"icc_profile": metadata.icc_profile, "xmp": metadata.xmp}
    if metadata.exif:
        options["exif"] = _EXIF_PREFIX + metadata.exif if file_format == "JPEG" else metadata.exif
    if metadata.dpi and file_format == "JPEG":
        options["dpi"] = tuple(round(dots) for dots in metadata.dpi)
    return {name: value for name, value in options.items() if value}


def without_what_does_not_fit(metadata: Metadata, file_format: str) -> tuple[Metadata, tuple[str, ...]]:
    """Return what a format can hold of the metadata, and sentences on what is left out."""
    lost = []
    if metadata.parts and metadata.parts_format != file_format:
        names = list(dict.fromkeys(metadata.names))
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        lost.append(f"{file_format} cannot hold its {', '.join(names[:_MOST_NAMED])}{more}; left out.")
        metadata = dataclasses.replace(metadata, parts=(), names=(), parts_format="")
    if file_format == "JPEG":
        for name, prefix in (("exif", _EXIF_PREFIX), ("xmp", _XMP_PREFIX)):
            if len(getattr(metadata, name)) + len(prefix) > _MOST_JPEG_SEGMENT_BYTES:
                lost.append(f"JPEG holds at most 64 kB of {name.upper()}; it is left out.")
                metadata = dataclasses.replace(metadata, **{name: b""})
    return metadata, tuple(lost)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Encode one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, data) of the chunks that hold metadata, up to where the file ends; pixels are skipped."""
    file.seek(len(_PNG_SIGNATURE))
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf" or kind in _PNG_KEPT:
            yield kind, file.read(length)
            length = 0
        file.seek(length + 4, io.SEEK_CUR)


def _of_png(file: BinaryIO, icc_profile: bytes, dpi: tuple[float, float] | None) -> Metadata:
    exif = xmp = b""
    parts, names = [], []
    profiles = {"exif": b"", "xmp": b""}
    for kind, data in png_chunks(file):
        keyword = data.partition(b"\0")[0] if kind in _PNG_TEXT else b""
        if kind == b"eXIf":
            exif = data.removeprefix(_EXIF_PREFIX)
        elif keyword == _XMP_KEYWORD and kind == b"iTXt":
            xmp = _international_text(data)
        elif keyword in _RAW_PROFILES:
            name = _RAW_PROFILES[keyword]
            profiles[name] = _raw_profile(kind, data)
        else:
            parts.append(png_chunk(kind, data))
            names.append(kind.decode() + (f' "{keyword[:_LONGEST_KEYWORD].decode("latin-1")}"' if keyword else ""))
    exif = exif or profiles["exif"].removeprefix(_EXIF_PREFIX)
    return Metadata(exif, icc_profile, xmp or profiles["xmp"], dpi, "PNG", tuple(parts), tuple(names))


def _international_text(data: bytes) -> bytes:
    _, _, rest = data.partition(b"\0")
    compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    return _unpacked(text) if compressed else text


def _raw_profile(kind: bytes, data: bytes) -> bytes:
    """The bytes of ImageMagick's profiles: hexadecimal, behind a line with the name and one with the length."""
    text = data.partition(b"\0")[2]
    text = _unpacked(text[1:]) if kind == b"zTXt" else text
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except ValueError:
        return b""


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_UNPACKED_BYTES)
    except zlib.error:
        return b""


def _of_jpeg(file: BinaryIO, icc_profile: bytes, dpi: tuple[float, float] | None) -> Metadata:
    file.seek(0)
    exif = xmp = b""
    parts, names = [], []
    for marker, data in _jpeg_segments(file):
        if marker == _APP1 and data.startswith(_EXIF_PREFIX):
            exif = exif or data.removeprefix(_EXIF_PREFIX)
        elif marker == _APP1 and data.startswith(_XMP_PREFIX):
            xmp = xmp or data.removeprefix(_XMP_PREFIX)
        elif marker == _APP1 and data.startswith(_LONGER_XMP_PREFIX):
            parts.append(_jpeg_segment(marker, data))
            names.append("rest of a long XMP packet")
        elif marker == _COMMENT:
            parts.append(_jpeg_segment(marker, data))
            names.append("comment")
        elif marker == _APP13 and data.startswith(_PHOTOSHOP_PREFIX):
            resources = _without_thumbnails(data.removeprefix(_PHOTOSHOP_PREFIX))
            if resources:
                parts.append(_jpeg_segment(marker, _PHOTOSHOP_PREFIX + resources))
                names.append("IPTC block")
    return Metadata(exif, icc_profile, xmp, dpi, "JPEG", tuple(parts), tuple(names))


def _jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of the segments before the pixels, up to where the file ends."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != _START_OF_SCAN:
        if head[1] == 0xFF:  # fill bytes may stand before a marker
            file.seek(-3, io.SEEK_CUR)
            continue
        yield head[1], file.read(max(0, int.from_bytes(head[2:], "big") - 2))


def _jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _without_thumbnails(resources: bytes) -> bytes:
    """Return Photoshop's image resources without the thumbnails; damaged ones as they are."""
    kept, start = [], 0
    while start + 12 <= len(resources):
        if resources[start : start + 4] != b"8BIM":
            return resources
        name = (resources[start + 6] + 2) // 2 * 2  # bytes of the length, the text, and padding to an even number
        size_at = start + 6 + name
        size = int.from_bytes(resources[size_at : size_at + 4], "big")
        end = size_at + 4 + size + size % 2
        if int.from_bytes(resources[start + 4 : start + 6], "big") not in _THUMBNAIL_RESOURCES:
            kept.append(resources[start:end])
        start = end
    return b"".join(kept)


def _bytes(text: str | bytes | None) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""
