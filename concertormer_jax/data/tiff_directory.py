"""Directories of TIFF files and EXIF blocks, read and written as the raw bytes of their entries.

Values are not decoded, so text in any encoding and a camera maker's private notes stay as they are.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

ORIENTATION, EXIF, GPS, INTEROPERABILITY = 0x0112, 0x8769, 0x8825, 0xA005
_SUBDIRECTORIES = frozenset({EXIF, GPS, INTEROPERABILITY})
_SHORT, _LONG = 3, 4
# Field types of offsets to other places, and those of BigTIFF: their values would not hold in another file.
_NOT_KEPT = frozenset({13, 16, 17, 18})
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_THUMBNAIL_START, _THUMBNAIL_BYTES = 0x0201, 0x0202


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


def read(data: bytes, head: Header, start: int, depth: int = 2) -> tuple[dict[int, Entry], int]:
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
                below, _ = read(data, head, _number(value, head.order), depth - 1)
                entries[tag] = Entry(_LONG, 1, b"", place, below)
        elif kind not in _NOT_KEPT:
            entries[tag] = Entry(kind, values, value, place)
    return entries, following


def written(entries: dict[int, Entry], order: str, start: int) -> bytes:
    """Encode a directory that is to stand at `start` of a classic TIFF, followed by its values and those below it."""
    size = 2 + 12 * len(entries) + 4
    records, tail = [], bytearray()
    for tag in sorted(entries):
        kind, count, value, _, below = entries[tag]
        if below is not None:
            field = struct.pack(order + "I", start + size + len(tail))
            tail += written(below, order, start + size + len(tail))
        elif len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", start + size + len(tail))
            tail += value + b"\0" * (len(value) % 2)
        records.append(struct.pack(order + "HHI", tag, kind, count) + field)
    return struct.pack(order + "H", len(entries)) + b"".join(records) + bytes(4) + bytes(tail)


def block(entries: dict[int, Entry], order: str) -> bytes:
    """Encode entries as an EXIF block: a TIFF header and one directory."""
    return {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8) + written(entries, order, 8)


def numbers(values: Sequence[int], order: str) -> Entry:
    """Return an entry of integers: SHORT if all are less than 65,536, else LONG."""
    kind, letter = (_SHORT, "H") if max(values) < 2**16 else (_LONG, "I")
    return Entry(kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values))


def orientation(exif: bytes) -> int | None:
    """Return the picture's orientation, 1 to 8, by an EXIF block; None if it has none or is damaged."""
    try:
        head = header(exif)
        entry = read(exif, head, head.first, depth=0)[0].get(ORIENTATION)
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
    entries, following = read(exif, head, head.first)
    changed = bytearray(exif)
    if entry := entries.get(ORIENTATION):
        size = len(entry.value)
        changed[entry.place : entry.place + size] = (1).to_bytes(size, "little" if head.order == "<" else "big")
    if following:
        count = struct.unpack_from(head.order + "H", exif, head.first)[0]
        struct.pack_into(head.order + "I", changed, head.first + 2 + 12 * count, 0)
        try:
            thumbnail = read(exif, head, following, depth=0)[0]
        except ValueError:
            thumbnail = {}
        if _THUMBNAIL_START in thumbnail and _THUMBNAIL_BYTES in thumbnail:
            start, size = (_number(thumbnail[t].value, head.order) for t in (_THUMBNAIL_START, _THUMBNAIL_BYTES))
            end = min(start + size, len(changed))
            changed[start:end] = bytes(max(0, end - start))
    return bytes(changed)


def _number(value: bytes, order: str) -> int:
    return int.from_bytes(value[:8], "little" if order == "<" else "big")
