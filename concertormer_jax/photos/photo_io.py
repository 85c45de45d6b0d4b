"""Photographs as a user has them: colours for the network, and what is needed to write them back the same way."""

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from concertormer_jax.data import tiff
from concertormer_jax.data.images import decode_file
from concertormer_jax.data.metadata import (
    NO_METADATA,
    Metadata,
    into_jpeg,
    into_png,
    pillow_options,
    png_chunk,
    without_what_does_not_fit,
)
from concertormer_jax.data.tiff import Entry, numbers
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# WebP without loss, since its lossy form always halves the resolution of colour.
_SAVE_OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True, "exact": True},
}
_DEEP_FORMATS = ("PNG", "TIFF")  # that can hold 16 bits per channel
_LONGEST_SIDE_PX = {"JPEG": 65500, "WEBP": 16383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}
_TIFF_TAGS_BYTES = 2**24  # left for what is not pixels
MOST_TIFF_BYTES = 2**32 - 1  # what the 32-bit offsets of a classic TIFF reach
_PNG_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey with alpha, RGB, RGB with alpha
_PNG_FILTER_UP = 2
_BYTE, _LONG, _RATIONAL, _UNDEFINED = 1, 4, 5, 7
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture, upright, with what its file said about it.

    rgb: float32 [H, W, 3] in [0, 1]; a grey picture has three equal channels.
    alpha: uint8 or uint16 [H, W] (by `bits`), or None.
    grey: whether the file holds grey; bits: 8 or 16 per channel.
    metadata: EXIF, profile and so on, of the upright picture; file_format: that of the file's content, "" for none.
    notes: sentences on what of the file was not taken over.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    bits: int = 8
    metadata: Metadata = NO_METADATA
    file_format: str = ""
    notes: tuple[str, ...] = ()


def read_photo(path) -> Photo:
    """Read a picture of any kind that `images.decode_file` knows, turned upright.

    Colours other than RGB (palette, CMYK, ...) become RGB. Of several frames or pages the first is read.
    Raises UserError like `decode_file`.
    """
    decoded = decode_file(path)
    samples, notes = decoded.samples, decoded.notes
    if decoded.frames > 1:
        hint = " (with OUT a .gif or a video, all of them)" if decoded.file_format == "GIF" else ""
        notes = (f"holds {decoded.frames} frames or pages; only the first is restored{hint}.", *notes)
    channels = samples.shape[2]
    bits = 8 * samples.itemsize
    rgb = np.empty((*samples.shape[:2], 3), np.float32)
    np.divide(samples[:, :, : 3 if channels > 2 else 1], np.float32(2**bits - 1), out=rgb)
    return Photo(
        rgb=rgb,
        alpha=samples[:, :, -1].copy() if channels in (2, 4) else None,
        grey=channels < 3,
        bits=bits,
        metadata=decoded.metadata,
        file_format=decoded.file_format,
        notes=notes,
    )


def write_photo(path, photo: Photo) -> None:
    """Write `photo` in the format that the suffix of `path` names; the file is either whole or absent.

    JPEG has quality 95 and full colour resolution, WebP is lossless. 16 bits stay 16 bits in PNG and TIFF.
    `losses` says what a format cannot hold. Raises UserError naming the file if it cannot be written.
    """
    path = Path(path)
    require_fits(photo, path)
    file_format = output_format(path)
    metadata, _ = without_what_does_not_fit(photo.metadata, file_format)
    deep = photo.bits == 16 and file_format in _DEEP_FORMATS
    samples = _samples(photo, 16 if deep else 8, with_alpha=file_format != "JPEG")
    try:
        with written_atomically(path) as temporary, open(temporary, "wb") as file:
            for part in _encoded(samples, file_format, metadata):
                file.write(part)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason}); name another place or format.") from error


def output_format(path) -> str:
    """Return Pillow's name of the format that the suffix of `path` stands for.

    Raises UserError for any other suffix, and for a format that the installed Pillow cannot write.
    """
    file_format = FORMATS.get(Path(path).suffix.lower())
    if file_format is None:
        raise UserError(f"{path}: unknown picture format; let the name end in one of {', '.join(FORMATS)}.")
    Image.init()
    if file_format not in Image.SAVE:
        raise UserError(f"{path}: the installed Pillow cannot write {file_format}; name a .png, or install another.")
    return file_format


def require_fits(photo: Photo, path) -> None:
    """Raise UserError if the format of `path` cannot hold a picture of this size."""
    file_format = output_format(path)
    height, width = photo.rgb.shape[:2]
    most = _LONGEST_SIDE_PX[file_format]
    if max(height, width) > most:
        raise UserError(f"{path}: a {file_format} has at most {most} pixels a side, not {width}x{height}; name a .png.")
    channels = (1 if photo.grey else 3) + (photo.alpha is not None)
    size = height * width * channels * photo.bits // 8
    if file_format == "TIFF" and size + _TIFF_TAGS_BYTES > MOST_TIFF_BYTES:
        raise UserError(f"{path}: a TIFF holds at most 4 GB, not the {size / 1e9:.1f} of this picture; name a .png.")


def losses(photo: Photo, path) -> tuple[str, ...]:
    """Return sentences on what of `photo` the format of `path` cannot hold."""
    file_format = output_format(path)
    lost = []
    if photo.alpha is not None and file_format == "JPEG":
        lost.append("JPEG has no alpha channel; it is left out.")
    if photo.bits == 16 and file_format not in _DEEP_FORMATS:
        lost.append(f"{file_format} has 8 bits per channel; the picture had 16.")
    return (*lost, *without_what_does_not_fit(photo.metadata, file_format)[1])


def _encoded(samples, file_format, metadata):
    """The parts of the file one after the other."""
    if file_format == "TIFF":
        return tiff_parts(samples, metadata)
    if samples.dtype == np.uint16:
        return [into_png(deep_png(samples), metadata)]
    encoded = io.BytesIO()
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    if file_format == "PNG":
        image.save(encoded, format="PNG")
        return [into_png(encoded.getvalue(), metadata)]
    image.save(encoded, format=file_format, **_SAVE_OPTIONS[file_format], **pillow_options(metadata, file_format))
    return [into_jpeg(encoded.getvalue(), metadata) if file_format == "JPEG" else encoded.getvalue()]


def _samples(photo, bits, with_alpha):
    """Quantise to uint8 or uint16 [H, W, C], C = 1 to 4."""
    peak, kind = (65535, np.uint16) if bits == 16 else (255, np.uint8)
    colour = photo.rgb.mean(axis=2, keepdims=True) if photo.grey else photo.rgb
    scaled = np.clip(colour, 0, 1)
    scaled *= np.float32(peak)
    samples = np.rint(scaled, out=scaled).astype(kind)
    if photo.alpha is None or not with_alpha:
        return samples
    alpha = photo.alpha if photo.bits == bits else ((photo.alpha.astype(np.uint32) + 128) // 257).astype(kind)
    return np.concatenate([samples, alpha[:, :, None]], axis=2)


def deep_png(samples: np.ndarray) -> bytes:
    """Encode uint16 [H, W, C], C = 1 to 4 (grey, grey and alpha, RGB, RGB and alpha), as a PNG without metadata."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR_TYPE[channels], 0, 0, 0)
    pixels = zlib.compress(filtered.data)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_parts(samples: np.ndarray, metadata: Metadata) -> tuple[bytes, np.ndarray]:
    """Return the two parts of an uncompressed TIFF of one strip: what stands before the pixels, and these.

    samples: uint8 or uint16 [H, W, C], C = 1 to 4 as in `deep_png`.
    """
    height, width, channels = samples.shape
    bits = 8 * samples.itemsize
    order, entries = "<", {}
    if metadata.exif:
        head = tiff.header(metadata.exif)
        order, entries = head.order, tiff.read_directory(metadata.exif, head, head.first)[0]
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
    entries[273] = Entry(_LONG, 1, struct.pack(order + "I", len(tiff.exif_block(entries, order))))
    before = tiff.exif_block(entries, order)
    return before, samples.astype(samples.dtype.newbyteorder("<" if order == "<" else ">"), copy=False)
