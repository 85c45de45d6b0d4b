"""Files that Pillow does not write: PNG with 16 bits of colour, and TIFF whose tags come from another file."""

import struct
import zlib

import numpy as np

from concertormer_jax.data import tiff_directory
from concertormer_jax.data.metadata import Metadata, png_chunk
from concertormer_jax.data.tiff_directory import Entry, numbers

MOST_TIFF_BYTES = 2**32 - 1  # what the 32-bit offsets of a classic TIFF reach
_PNG_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey with alpha, RGB, RGB with alpha
_PNG_FILTER_UP = 2
_BYTE, _LONG, _RATIONAL, _UNDEFINED = 1, 4, 5, 7
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296


def deep_png(samples: np.ndarray) -> bytes:
    """Encode uint16 [H, W, C], C = 1 to 4 (grey, grey and alpha, RGB, RGB and alpha), as a PNG without metadata."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR_TYPE[channels], 0, 0, 0)
    pixels = zlib.compress(filtered)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(samples: np.ndarray, metadata: Metadata) -> tuple[bytes, np.ndarray]:
    """Return the two parts of an uncompressed TIFF of one strip: what stands before the pixels, and these.

    samples: uint8 or uint16 [H, W, C], C = 1 to 4 as in `deep_png`.
    """
    height, width, channels = samples.shape
    bits = 8 * samples.itemsize
    order, entries = "<", {}
    if metadata.exif:
        head = tiff_directory.header(metadata.exif)
        order, entries = head.order, tiff_directory.read(metadata.exif, head, head.first)[0]
    if metadata.dpi and not {_X_RESOLUTION, _Y_RESOLUTION} & entries.keys():
        for tag, dots in zip((_X_RESOLUTION, _Y_RESOLUTION), metadata.dpi, strict=True):
            entries[tag] = Entry(_RATIONAL, 1, struct.pack(order + "II", round(1000 * dots), 1000))
        entries[_RESOLUTION_UNIT] = numbers([2], order)  # inches
    if metadata.xmp:
        entries[700] = Entry(_BYTE, len(metadata.xmp), metadata.xmp)
    if metadata.icc_profile:
        entries[34675] = Entry(_UNDEFINED, len(metadata.icc_profile), metadata.icc_profile)
    stored = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],  # not compressed
        262: [1 if channels < 3 else 2],  # black is zero, RGB
        277: [channels],
        278: [height],  # rows per strip
        279: [samples.nbytes],
        284: [1],  # the channels of a pixel side by side
    }
    if channels in (2, 4):
        stored[338] = [2]  # alpha that is not multiplied into the colours
    entries |= {tag: numbers(values, order) for tag, values in stored.items()}
    entries[273] = Entry(_LONG, 1, bytes(4))  # the pixels begin where the directory ends, whose length is known now
    entries[273] = Entry(_LONG, 1, struct.pack(order + "I", len(tiff_directory.block(entries, order))))
    before = tiff_directory.block(entries, order)
    return before, samples.astype(samples.dtype.newbyteorder(order), copy=False)
