"""Photographs as a user has them: colour for the network, and all that is needed to write them back the same way."""

import dataclasses
import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from concertormer_jax import sixteen_bit
from concertormer_jax.errors import UserError
from concertormer_jax.files import written_atomically

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# WebP without loss, since its lossy form always halves the resolution of colour.
_SAVE_OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
}
_DEEP_FORMATS = ("PNG", "TIFF")  # that can hold 16 bits per channel
# How a TIFF stores its pixels stands in the same directory as what EXIF says about the picture.
_STORAGE_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 330}
    | {332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675}
)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture, upright, with what its file said about it.

    rgb: float32 [H, W, 3] in [0, 1]; a grey picture has three equal channels.
    alpha: uint8 or uint16 [H, W] (by `bits`), or None.
    grey: whether the file holds grey; bits: 8 or 16 per channel.
    exif: the EXIF block with orientation 1, as bytes, empty for none; icc_profile: likewise.
    notes: sentences on what of the file was not taken over.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    bits: int = 8
    exif: bytes = b""
    icc_profile: bytes = b""
    notes: tuple[str, ...] = ()


def read_photo(path) -> Photo:
    """Read a PNG, JPEG, WebP or TIFF of 8 or 16 bits, grey or colour, with or without alpha, turned upright.

    Colours other than RGB (palette, CMYK, ...) become RGB. Of several frames or pages the first is read.
    Raises UserError naming the file if it is missing, no such picture, corrupt, truncated, or of more than 16 bits.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on sizes and damaged EXIF; the latter becomes a note
            with Image.open(io.BytesIO(data)) as image:
                return _photo(image, data)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture, or its header is corrupt; replace or remove it.") from error
    except Exception as error:  # a corrupt file makes Pillow raise OSError, SyntaxError, struct.error, IndexError, ...
        if isinstance(error, OSError) and error.errno:  # the operating system's: permission, a folder, ...
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its mode.") from error
        raise UserError(f"{path}: cannot be decoded ({error}); replace or remove it.") from error


def write_photo(path, photo: Photo) -> None:
    """Write `photo` in the format that the suffix of `path` names; the file is either whole or absent.

    JPEG has quality 95 and full colour resolution, WebP is lossless. 16 bits stay 16 bits in PNG and TIFF.
    `losses` says what a format cannot hold. Raises UserError naming the file if it cannot be written.
    """
    path = Path(path)
    file_format = output_format(path)
    deep = photo.bits == 16 and file_format in _DEEP_FORMATS
    samples = _samples(photo, 16 if deep else 8, with_alpha=file_format != "JPEG")
    try:
        with written_atomically(path) as temporary:
            if not deep:
                image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
                metadata = {"exif": photo.exif, "icc_profile": photo.icc_profile}
                metadata = {name: value for name, value in metadata.items() if value}
                image.save(temporary, format=file_format, **_SAVE_OPTIONS[file_format], **metadata)
            elif file_format == "PNG":
                temporary.write_bytes(sixteen_bit.png(samples, photo.exif, photo.icc_profile))
            else:
                if samples.shape[2] == 2:  # few programs read grey with alpha from a TIFF
                    samples = samples[:, :, [0, 0, 0, 1]]
                temporary.write_bytes(sixteen_bit.tiff(samples, photo.exif, photo.icc_profile))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason}); name another place or format.") from error


def output_format(path) -> str:
    """Return Pillow's name of the format that the suffix of `path` stands for. Raises UserError for any other."""
    try:
        return FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise UserError(f"{path}: unknown picture format; let the name end in one of {', '.join(FORMATS)}.") from None


def losses(photo: Photo, path) -> tuple[str, ...]:
    """Return sentences on what of `photo` the format of `path` cannot hold."""
    file_format = output_format(path)
    lost = []
    if photo.alpha is not None and file_format == "JPEG":
        lost.append("JPEG has no alpha channel; it is left out.")
    if photo.bits == 16 and file_format not in _DEEP_FORMATS:
        lost.append(f"{file_format} has 8 bits per channel; the picture had 16.")
    return tuple(lost)


def _photo(image, data):
    notes = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a camera's JPEG with previews behind it
        notes.append(f"holds {image.n_frames} frames or pages; only the first is restored.")
    bits = _bits_per_channel(image, data)
    image.load()
    grey = _is_grey(image, bits, data)
    samples = sixteen_bit.decode(data) if bits == 16 else _samples_of_8_bits(image, grey)
    information = image.getexif()
    samples = _upright(samples, information.get(ExifTags.Base.Orientation, 1))
    exif, problem = _exif_bytes(information)
    peak = np.float32(2**bits - 1)
    colour = samples[:, :, :1] if grey else samples[:, :, :3]
    return Photo(
        rgb=np.ascontiguousarray(np.broadcast_to(colour / peak, (*samples.shape[:2], 3))),
        alpha=samples[:, :, -1].copy() if samples.shape[2] in (2, 4) else None,
        grey=grey,
        bits=bits,
        exif=exif,
        # The profile of a CMYK or LAB file does not describe the RGB that is made of it.
        icc_profile=(image.info.get("icc_profile") or b"") if image.mode not in ("CMYK", "LAB") else b"",
        notes=(*notes, *problem),
    )


def _bits_per_channel(image, data):
    if image.format not in FORMATS.values() and image.format != "MPO":
        raise ValueError(f"{image.format} is not one of {', '.join(sorted(set(FORMATS.values())))}")
    if image.format == "PNG":
        return 16 if data[24] == 16 else 8  # the header's bit depth
    if image.format != "TIFF":
        return 8
    bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    integers = set(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) == {1}
    if bits <= 8 and integers:
        return 8
    photometric = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    if bits == 16 and integers and photometric in (1, 2):  # black is zero, RGB
        return 16
    raise ValueError("only grey or RGB of 8 or 16 bits can be read from a TIFF of more than 8 bits")


def _is_grey(image, bits, data):
    if image.format == "PNG" and bits == 16:  # Pillow opens grey with alpha of 16 bits as RGBA
        return data[25] in (0, 4)  # the header's colour type
    return image.mode in ("1", "L", "LA", "I;16", "I;16B")


def _samples_of_8_bits(image, grey):
    has_alpha = image.has_transparency_data
    samples = np.asarray(image.convert(("LA" if has_alpha else "L") if grey else ("RGBA" if has_alpha else "RGB")))
    return samples[:, :, None] if samples.ndim == 2 else samples


def _upright(samples, orientation):
    """Turn [H, W, C] as stored into the picture that EXIF orientation 1 to 8 means."""
    if orientation in (5, 6, 7, 8):  # the stored rows are the displayed columns
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _exif_bytes(information):
    for tag in _STORAGE_TAGS & information.keys():
        del information[tag]
    if ExifTags.Base.Orientation in information:
        information[ExifTags.Base.Orientation] = 1
    if not information:
        return b"", ()
    try:
        return information.tobytes(), ()
    except (struct.error, TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return b"", ("its EXIF block is damaged; it is left out.",)


def _samples(photo, bits, with_alpha):
    """Quantise to uint8 or uint16 [H, W, C], C = 1 to 4."""
    peak, kind = (65535, np.uint16) if bits == 16 else (255, np.uint8)
    colour = photo.rgb.mean(axis=2, keepdims=True) if photo.grey else photo.rgb
    samples = np.rint(np.clip(colour, 0, 1) * np.float32(peak)).astype(kind)
    if photo.alpha is None or not with_alpha:
        return samples
    alpha = photo.alpha if photo.bits == bits else ((photo.alpha.astype(np.uint32) + 128) // 257).astype(kind)
    return np.concatenate([samples, alpha[:, :, None]], axis=2)
