"""What a picture file says beside its pixels, as the bytes that stand there, and how each format holds it."""

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from concertormer_jax.data import tiff_directory

# Unpacked text or a profile of more than this is no metadata but an attempt to fill the memory.
_MOST_UNPACKED_BYTES = 2**28
_EXIF_PREFIX = b"Exif\0\0"
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_LONGER_XMP_PREFIX = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP_PREFIX = b"Photoshop 3.0\0"
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_RAW_PROFILES = {b"Raw profile type exif": "exif", b"Raw profile type APP1": "exif", b"Raw profile type xmp": "xmp"}
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([1-8])")
_MOST_DPI = 65535  # that a JPEG can state
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LONGEST_KEYWORD = 79
_MOST_NAMED = 10  # of what is left out
_PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Chunks that are true of the restored picture too; what belongs to a way of storing pixels (sBIT, bKGD, hIST) is not.
_PNG_KEPT = _PNG_TEXT | {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"pHYs", b"oFFs", b"tIME", b"sPLT"}
_COMMENT, _APP1, _APP13, _START_OF_SCAN = 0xFE, 0xE1, 0xED, 0xDA
_MOST_JPEG_SEGMENT_BYTES = 65533
_THUMBNAIL_RESOURCES = frozenset({1033, 1036})
_ICC, _XMP, _PHOTOSHOP = 34675, 700, 34377
# How a TIFF stores its pixels stands in the directory that also holds what EXIF says. 37724: Photoshop's layers.
_STORAGE_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 290, 291, 292, 293, 297}
    | {317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 334, 336, 338, 339, 340, 341, 342, 347}
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 37724, 50838, 50839}
)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What goes from one file into another.

    exif: an EXIF block from its byte order mark on; icc_profile; xmp: a packet. All are bytes, empty for none.
    dpi: dots per inch, horizontally and vertically, or None.
    kept_by: the format that `parts` belong to; parts: whole chunks (PNG) or segments (JPEG) that only it can hold.
    names: what to call the parts.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    kept_by: str = ""
    parts: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def orientation(self) -> int:
        """How the stored picture is to be turned, 1 to 8, by EXIF's meaning; 1 if nothing says so."""
        if (stated := tiff_directory.orientation(self.exif)) is not None:
            return stated
        found = _XMP_ORIENTATION.search(self.xmp)
        return int(found[2]) if found else 1

    def for_upright_picture(self) -> tuple["Metadata", tuple[str, ...]]:
        """Return the metadata of the upright picture, without EXIF's thumbnail, and a note if EXIF is damaged."""
        notes, exif, dpi, parts = (), self.exif, self.dpi, self.parts
        if exif:
            try:
                exif = tiff_directory.for_upright_picture(exif)
            except ValueError as error:
                exif, notes = b"", (f"its EXIF block is damaged ({error}); it is left out.",)
        if dpi and self.orientation in (5, 6, 7, 8):
            dpi = dpi[::-1]
            parts = tuple(part for part in parts if part[4:8] != b"pHYs")  # it is written anew
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp)
        return dataclasses.replace(self, exif=exif, xmp=xmp, dpi=dpi, parts=parts), notes


NO_METADATA = Metadata()


def of_image(image, file: BinaryIO) -> Metadata:
    """Read the metadata of a picture that Pillow has opened from `file`; of a PNG and a JPEG from `file` itself."""
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
    comments = {"kept_by": "GIF", "parts": (info["comment"],), "names": ("comment",)} if info.get("comment") else {}
    return Metadata(exif, icc_profile, _bytes(info.get("xmp")), dpi, **comments)


def of_tiff(data: bytes, start: int, icc_profile_describes_rgb: bool) -> Metadata:
    """Read the metadata in the directory at `start` of a TIFF: its tags but those that say how pixels are stored.

    The XMP packet and the profile are handed over by themselves. Raises ValueError if the directory is damaged.
    """
    head = tiff_directory.header(data)
    entries, _ = tiff_directory.read(data, head, start)
    icc_profile, xmp = (entries.pop(tag, None) for tag in (_ICC, _XMP))
    entries = {tag: entry for tag, entry in entries.items() if tag not in _STORAGE_TAGS}
    if _PHOTOSHOP in entries:
        resources = _without_thumbnails(entries[_PHOTOSHOP].value)
        entries[_PHOTOSHOP] = tiff_directory.Entry(1, len(resources), resources)
    return Metadata(
        exif=tiff_directory.block(entries, head.order) if entries else b"",
        icc_profile=icc_profile.value if icc_profile and icc_profile_describes_rgb else b"",
        xmp=xmp.value if xmp else b"",
    )


def into_png(png: bytes, metadata: Metadata) -> bytes:
    """Put metadata into an encoded PNG that has none."""
    chunks = []
    if metadata.icc_profile:
        chunks.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile)))
    parts = metadata.parts if metadata.kept_by == "PNG" else ()
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
    """Put what Pillow cannot write, comments, IPTC and the rest of a long XMP packet, into an encoded JPEG."""
    if metadata.kept_by != "JPEG" or not metadata.parts:
        return jpeg
    start = 2
    while jpeg[start] == 0xFF and 0xE0 <= jpeg[start + 1] <= 0xEF:
        start += 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return b"".join([jpeg[:start], *metadata.parts, jpeg[start:]])


def pillow_options(metadata: Metadata, file_format: str) -> dict:
    """The options by which Pillow writes EXIF, profile, XMP and resolution into a JPEG or WebP."""
    options = {"icc_profile": metadata.icc_profile, "xmp": metadata.xmp}
    if metadata.exif:
        options["exif"] = _EXIF_PREFIX + metadata.exif if file_format == "JPEG" else metadata.exif
    if metadata.dpi and file_format == "JPEG":
        options["dpi"] = tuple(round(dots) for dots in metadata.dpi)
    return {name: value for name, value in options.items() if value}


def without_what_does_not_fit(metadata: Metadata, file_format: str) -> tuple[Metadata, tuple[str, ...]]:
    """Leave out what a format cannot hold; return the rest, and sentences on what is left out."""
    lost = []
    if metadata.parts and metadata.kept_by != file_format:
        names = list(dict.fromkeys(metadata.names))
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        lost.append(f"{file_format} cannot hold its {', '.join(names[:_MOST_NAMED])}{more}; left out.")
        metadata = dataclasses.replace(metadata, parts=(), names=(), kept_by="")
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
    """Yield (kind, data) of the chunks that hold metadata, as far as the file goes; pixels are skipped unread."""
    file.seek(len(_PNG_SIGNATURE))
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf" or kind in _PNG_KEPT:
            yield kind, file.read(length)
            length = 0
        file.seek(length + 4, io.SEEK_CUR)


def _of_png(file, icc_profile, dpi):
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


def _international_text(data):
    _, _, rest = data.partition(b"\0")
    compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    return _unpacked(text) if compressed else text


def _raw_profile(kind, data):
    """The bytes that ImageMagick writes in hexadecimal, behind a line with their name and one with their number."""
    text = data.partition(b"\0")[2]
    text = _unpacked(text[1:]) if kind == b"zTXt" else text
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except ValueError:
        return b""


def _unpacked(data):
    try:
        return zlib.decompressobj().decompress(data, _MOST_UNPACKED_BYTES)
    except zlib.error:
        return b""


def _of_jpeg(file, icc_profile, dpi):
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


def _jpeg_segments(file):
    """Yield (marker, content) of the segments before the pixels, as far as the file goes."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != _START_OF_SCAN:
        if head[1] == 0xFF:  # fill bytes may stand before a marker
            file.seek(-3, io.SEEK_CUR)
            continue
        yield head[1], file.read(max(0, int.from_bytes(head[2:], "big") - 2))


def _jpeg_segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _without_thumbnails(resources: bytes) -> bytes:
    """Leave out the small pictures among Photoshop's image resources; damaged ones are returned as they are."""
    kept, start = [], 0
    while start + 12 <= len(resources):
        if resources[start : start + 4] != b"8BIM":
            return resources
        name = (resources[start + 6] + 2) // 2 * 2  # the length's own byte and the text, padded to an even number
        size_at = start + 6 + name
        size = int.from_bytes(resources[size_at : size_at + 4], "big")
        end = size_at + 4 + size + size % 2
        if int.from_bytes(resources[start + 4 : start + 6], "big") not in _THUMBNAIL_RESOURCES:
            kept.append(resources[start:end])
        start = end
    return b"".join(kept)


def _bytes(text) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""
