"""TIFF files: pixels are decoded exactly as the tags say, and ways of storing them that are not known are refused."""

import logging
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, SAMPLEFORMAT

from concertormer_jax.data import tiff_directory
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
    orientation = page.tags.valueof(tiff_directory.ORIENTATION, 1)
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
