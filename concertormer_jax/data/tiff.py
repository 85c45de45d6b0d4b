"""TIFF: its directories as raw bytes, which EXIF blocks are too, and its pixels, decoded exactly as the tags say.

Values of directories are not decoded, so text in any encoding and a camera maker's private notes stay as they are. Ways
of storing pixels that are not known are refused.
"""

import logging
import struct
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, SAMPLEFORMAT

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.memory import require_memory

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType: a small copy of another page, a mask for it
_CHANNELS: dict[int, int] = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
# Values of ExtraSamples: alpha with colours multiplied by it, and alpha with colours as they are.
_ASSOCIATED, _UNASSOCIATED = 1, 2
_CMYK = 1  # value of InkSet
_INK_SET, _ICC_PROFILE, _DNG_VERSION = 332, 34675, 50706
OTHER_COLOURS = "has a profile for colours other than RGB; they became RGB without it, and it is left out."

logging.getLogger("tifffile").disabled = True  # it logs text out of the file; errors are raised here

# Directories.
ORIENTATION, EXIF, GPS, INTEROPERABILITY = 0x0112, 0x8769, 0x8825, 0xA005
_SUBDIRECTORIES = frozenset({EXIF, GPS, INTEROPERABILITY})
_SHORT, _LONG = 3, 4
# Field types of offsets to other places, and those of BigTIFF: their values would not hold in another file.
_NOT_KEPT = frozenset({13, 16, 17, 18})
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_THUMBNAIL_START, _THUMBNAIL_BYTES = 0x0201, 0x0202


class Tiff(NamedTuple):
    """A decoded page. samples: uint8 or uint16 [H, W, C] as stored, not turned, C as in `images.Decoded`.

    has_own_profile: whether the colour profile in the file describes `samples`; not where CMYK or LAB became RGB.
    """

    samples: np.ndarray
    notes: tuple[str, ...]
    has_own_profile: bool


class Page(NamedTuple):
    """The first picture of a TIFF, not decoded. pages: how many pictures the file holds, without small copies."""

    page: tifffile.TiffPage
    height: int
    width: int
    orientation: int
    pages: int


def first_page(file: BinaryIO) -> Page:
    """Find the first picture in an open TIFF.

    If there is none, raises what `tifffile` raises, or UserError with a message that the caller puts behind the name.
    """
    tiff = tifffile.TiffFile(file)
    kinds = [int(page.aspage().subfiletype) for page in tiff.pages]
    whole = [index for index, kind in enumerate(kinds) if not kind & (_REDUCED | _MASK)]
    page = tiff.pages[whole[0] if whole else 0].aspage()
    if _DNG_VERSION in page.tags or (not whole and page.subifds):
        raise UserError("it is a camera's raw file; develop it into a TIFF of 16 bits first.")
    orientation = page.tags.valueof(ORIENTATION, 1)
    return Page(page, page.imagelength, page.imagewidth, orientation, max(1, len(whole)))


def decode(page: tifffile.TiffPage) -> Tiff:
    """Decode a page. Raises UserError like `first_page` for what cannot be read exactly."""
    _require_known(page)
    assert page.dtype is not None  # tifffile knows the types that `_require_known` accepts
    needed = 3 * int(np.prod(page.shaped)) * page.dtype.itemsize  # planes, channels side by side, turned picture
    require_memory(needed, f"decoding {page.imagewidth}x{page.imagelength} pixels")
    samples, notes = _stored(page), []
    channels = _CHANNELS[page.photometric]
    extra = [int(kind) for kind in page.extrasamples]
    if samples.shape[2] == channels + 1 and not extra:
        extra = [_UNASSOCIATED]  # some libraries write alpha without the tag
    alpha = next((index for index, kind in enumerate(extra) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    unknown = samples.shape[2] - channels - (alpha is not None)
    if unknown:
        notes.append(f"holds {unknown} extra channel{'s' * (unknown > 1)} beside the picture; left out.")
    palette = page.photometric == PHOTOMETRIC.PALETTE
    colour, peak = samples[:, :, :channels], 255
    if not palette:
        colour, peak = _scaled(colour, page.bitspersample)
    colour = _colour(page, colour, peak)
    has_own_profile = page.photometric not in (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.CIELAB)
    if not has_own_profile and _ICC_PROFILE in page.tags:
        notes.append(OTHER_COLOURS)
    if alpha is None:
        return Tiff(colour, tuple(notes), has_own_profile)
    opacity, _ = _scaled(samples[:, :, channels + alpha, None], page.bitspersample)
    if palette and opacity.dtype != np.uint8:
        opacity = (opacity >> 8).astype(np.uint8)
    if extra[alpha] == _ASSOCIATED:
        colour = _unmultiplied(colour, opacity, peak)
    return Tiff(np.concatenate([colour, opacity], axis=2), tuple(notes), has_own_profile)


def _require_known(page: tifffile.TiffPage) -> None:
    bits, form = page.bitspersample, page.sampleformat
    if isinstance(bits, tuple) or isinstance(form, tuple):
        raise UserError("its channels differ in their bits or kinds of numbers; save it with 8 or 16 bits for each.")
    if form != SAMPLEFORMAT.UINT or not 1 <= bits <= 16:
        numbers = {SAMPLEFORMAT.IEEEFP: "floating-point", SAMPLEFORMAT.INT: "signed"}.get(form, "integer")
        raise UserError(f"its pixels are {bits}-bit {numbers} numbers; save it with 8 or 16 bits per channel.")
    kind = page.photometric
    channels = _CHANNELS.get(kind)
    if channels is None:
        raise UserError(f"its colours are stored as {getattr(kind, 'name', kind)}; save it as RGB or grey.")
    if page.samplesperpixel < channels:
        raise UserError(f"it has {page.samplesperpixel} channels, too few for {PHOTOMETRIC(kind).name}; save it anew.")
    if kind == PHOTOMETRIC.YCBCR and page.compression not in (COMPRESSION.JPEG, COMPRESSION.OJPEG):
        raise UserError("its colours are stored as YCbCr without JPEG; save it as RGB.")
    if kind == PHOTOMETRIC.CIELAB and bits != 8:
        raise UserError("its colours are stored as CIELAB of more than 8 bits; save it as RGB.")
    if kind == PHOTOMETRIC.PALETTE and (page.colormap is None or page.colormap.shape != (3, 2**bits)):
        raise UserError("its palette is missing or has another size than its pixels need; save it as RGB.")
    if kind == PHOTOMETRIC.SEPARATED and page.tags.valueof(_INK_SET, _CMYK) != _CMYK:
        raise UserError("its inks are not CMYK; save it as RGB.")
    if page.imagedepth != 1:
        raise UserError("it holds a volume; save one picture per file.")


def _stored(page: tifffile.TiffPage) -> np.ndarray:
    """The stored unsigned numbers as [H, W, C], whatever the order of planes, strips and tiles in the file."""
    size = page.parent.filehandle.size
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    expected = int(np.prod(page.chunked))
    lengths_differ = len(page.dataoffsets) != len(page.databytecounts)
    if len(segments) < expected or lengths_differ or any(n < 1 or at + n > size for at, n in segments):
        raise UserError("it is truncated: pixels are missing; replace or remove it.")
    planes = np.empty(page.shaped, page.dtype)  # [separate channels, 1, H, W, channels side by side]
    for decoded, (plane, _, top, left, _), _ in page.segments(maxworkers=1):
        assert decoded is not None  # as every segment is in the file
        height, width = min(decoded.shape[1], page.imagelength - top), min(decoded.shape[2], page.imagewidth - left)
        planes[plane, 0, top : top + height, left : left + width] = decoded[0, :height, :width]
    samples = np.moveaxis(planes[:, 0], 0, 2).reshape(page.imagelength, page.imagewidth, -1)
    return samples.view(np.uint8) if samples.dtype == bool else samples


def _scaled(samples: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Scale 1 to 7 bits to the range of 8, and 9 to 15 to that of 16; return the samples and the largest value."""
    peak, kind = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    if bits in (8, 16):
        return samples, peak
    steps = 2**bits - 1
    return ((samples.astype(np.uint32) * peak + steps // 2) // steps).astype(kind), peak


def _colour(page: tifffile.TiffPage, stored: np.ndarray, peak: int) -> np.ndarray:
    """Grey [H, W, 1] or RGB [H, W, 3] from the channels of the page's colour space."""
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        return stored.dtype.type(peak) - stored
    if page.photometric == PHOTOMETRIC.PALETTE:
        assert page.colormap is not None  # by `_require_known`
        return (page.colormap >> 8).astype(np.uint8)[:, stored[:, :, 0]].transpose(1, 2, 0)
    if page.photometric == PHOTOMETRIC.CIELAB:
        return np.asarray(Image.frombytes("LAB", stored.shape[1::-1], stored.tobytes()).convert("RGB"))
    if page.photometric == PHOTOMETRIC.SEPARATED:
        inks, light = stored[:, :, :3].astype(np.uint32), np.uint32(peak) - stored[:, :, 3:]
        return (light - (inks * light + peak // 2) // peak).astype(stored.dtype)
    return stored


def _unmultiplied(colour: np.ndarray, alpha: np.ndarray, peak: int) -> np.ndarray:
    wide = colour.astype(np.uint32) * peak + alpha // 2
    return np.minimum(wide // np.maximum(alpha, 1), peak).astype(colour.dtype)


class Entry(NamedTuple):
    """One entry: its kind (TIFF's field type), the number of its values, and these as bytes.

    place: where the bytes stand in what was read. directory: the entries of the directory that the entry points to, for
    the tags of EXIF, GPS and interoperability; `value` is then empty.
    """

    kind: int
    count: int
    value: bytes
    place: int = 0
    directory: "dict[int, Entry] | None" = None


class Header(NamedTuple):
    """The beginning of a TIFF: byte order ("<" or ">"), whether it is a BigTIFF, where the first directory stands."""

    order: str
    big: bool
    first: int


def header(data: bytes) -> Header:
    """Read the first bytes of a TIFF or an EXIF block. Raises ValueError if it is neither."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        raise ValueError("no TIFF directory")
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 42:
        return Header(order, False, *struct.unpack_from(order + "I", data, 4))
    if version == 43 and len(data) >= 16:
        return Header(order, True, *struct.unpack_from(order + "Q", data, 8))
    raise ValueError("no TIFF directory")


def read_directory(data: bytes, head: Header, start: int, depth: int = 2) -> tuple[dict[int, Entry], int]:
    """Return the entries of the directory at `start` by tag, and where the next directory begins.

    depth: how many levels of directories below are read. Raises ValueError if an entry lies outside of `data`, or if
    the values together are longer than `data`.
    """
    counting, record, pointer = ("Q", 20, "Q") if head.big else ("H", 12, "I")
    width = struct.calcsize(head.order + pointer)
    try:
        (count,) = struct.unpack_from(head.order + counting, data, start)
        records = start + struct.calcsize(head.order + counting)
        following = struct.unpack_from(head.order + pointer, data, records + count * record)[0]
    except struct.error as error:
        raise ValueError("a TIFF directory lies outside of the file") from error
    entries, left = {}, len(data)
    for position in range(records, records + count * record, record):
        tag, kind = struct.unpack_from(head.order + "HH", data, position)
        (values,) = struct.unpack_from(head.order + pointer, data, position + 4)
        size, place = values * _BYTES.get(kind, 0), position + record - width
        if size == 0:  # a field type that is not known, or no values
            continue
        if size > width:
            (place,) = struct.unpack_from(head.order + pointer, data, place)
        left -= size
        if left < 0 or place + size > len(data):
            raise ValueError(f"the values of tag {tag} lie outside of the file or over others")
        value = bytes(data[place : place + size])
        if tag in _SUBDIRECTORIES:
            if depth:
                below, _ = read_directory(data, head, _number(value, head.order), depth - 1)
                entries[tag] = Entry(_LONG, 1, b"", place, below)
        elif kind not in _NOT_KEPT:
            entries[tag] = Entry(kind, values, value, place)
    return entries, following


def directory_bytes(entries: dict[int, Entry], order: str, start: int) -> bytes:
    """Encode a directory that is to stand at `start` of a classic TIFF, followed by its values and those below it."""
    size = 2 + 12 * len(entries) + 4
    records, tail = [], bytearray()
    for tag in sorted(entries):
        kind, count, value, _, below = entries[tag]
        if below is not None:
            field = struct.pack(order + "I", start + size + len(tail))
            tail += directory_bytes(below, order, start + size + len(tail))
        elif len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", start + size + len(tail))
            tail += value + b"\0" * (len(value) % 2)
        records.append(struct.pack(order + "HHI", tag, kind, count) + field)
    return struct.pack(order + "H", len(entries)) + b"".join(records) + bytes(4) + bytes(tail)


def exif_block(entries: dict[int, Entry], order: str) -> bytes:
    """Encode entries as an EXIF block: a TIFF header and one directory."""
    return {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8) + directory_bytes(entries, order, 8)


def numbers(values: Sequence[int], order: str) -> Entry:
    """Return an entry of integers: SHORT if all are less than 65,536, else LONG."""
    kind, letter = (_SHORT, "H") if max(values) < 2**16 else (_LONG, "I")
    return Entry(kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values))


def orientation(exif: bytes) -> int | None:
    """Return the picture's orientation, 1 to 8, by an EXIF block; None if it has none or is damaged."""
    try:
        head = header(exif)
        entry = read_directory(exif, head, head.first, depth=0)[0].get(ORIENTATION)
        value = _number(entry.value, head.order) if entry else None
    except ValueError:
        return None
    return value if value in range(1, 9) else None


def for_upright_picture(exif: bytes) -> bytes:
    """Return an EXIF block with orientation 1 and without its thumbnail, which shows the picture before restoration.

    Raises ValueError if it is damaged.
    """
    head = header(exif)
    if head.big:
        raise ValueError("an EXIF block cannot be a BigTIFF")
    entries, following = read_directory(exif, head, head.first)
    changed = bytearray(exif)
    if entry := entries.get(ORIENTATION):
        size = len(entry.value)
        changed[entry.place : entry.place + size] = (1).to_bytes(size, "little" if head.order == "<" else "big")
    if following:
        count = struct.unpack_from(head.order + "H", exif, head.first)[0]
        struct.pack_into(head.order + "I", changed, head.first + 2 + 12 * count, 0)
        try:
            thumbnail = read_directory(exif, head, following, depth=0)[0]
        except ValueError:
            thumbnail = {}
        if _THUMBNAIL_START in thumbnail and _THUMBNAIL_BYTES in thumbnail:
            start, size = (_number(thumbnail[t].value, head.order) for t in (_THUMBNAIL_START, _THUMBNAIL_BYTES))
            end = min(start + size, len(changed))
            changed[start:end] = bytes(max(0, end - start))
    return bytes(changed)


def _number(value: bytes, order: str) -> int:
    return int.from_bytes(value[:8], "little" if order == "<" else "big")
