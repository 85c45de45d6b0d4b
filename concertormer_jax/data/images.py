"""Picture files: reading them as 8-bit RGB, their sizes, listing and writing them."""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import stat
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from concertormer_jax.data import metadata, tiff
from concertormer_jax.data.listing import require_file, walk
from concertormer_jax.data.metadata import Metadata
from concertormer_jax.data.tiff import OTHER_COLOURS
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.memory import require_memory

# The one reader of picture files, for training, evaluation and restoration.

if importlib.util.find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
_PILLOW_FORMATS = [name for name in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF", "HEIF") if name in Image.OPEN]
# Pillow's own limits refuse photographs of today's cameras and profiles of more than 1 MB. The memory decides here.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28
logging.getLogger("imagecodecs").disabled = True  # what it logs is either harmless or raised as well
warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged EXIF and the like, with text out of the file

READABLE = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIC"
_BYTES_PER_PIXEL = 16  # while three channels of 16 bits, or four of 8, are decoded and turned
_BRANDS = {  # of the family of formats that begin with a box named `ftyp`
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
}
_NEEDED = {"AVIF": "pip install -U pillow", "HEIF": "pip install pillow-heif (the extra `heif`)"}


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A picture as it is displayed: turned upright, its palette or CMYK colours made RGB.

    samples: uint8 or uint16 [H, W, C]; C = 1: grey, 2: grey and alpha, 3: RGB, 4: RGB and alpha. Colours are not
    multiplied by alpha. file_format: by the content, as Pillow calls it. metadata: of the upright picture.
    frames: how many pictures the file holds; this is the first. notes: sentences on what was not taken over.
    """

    samples: np.ndarray
    file_format: str
    metadata: Metadata
    frames: int
    notes: tuple[str, ...]


def decode_file(path) -> Decoded:
    """Decode a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF, and a HEIC if `pillow-heif` is installed.

    Raises UserError naming the file if it is missing, no regular file, no such picture, corrupt, truncated, stored in a
    way that cannot be read right, or larger than the memory.
    """
    with _explained(path), _opened(path) as file:
        return _decoded(file.read())


def decode_bytes(data: bytes, name) -> Decoded:
    """Decode the content of a picture file like `decode_file`; `name` stands for the file in messages."""
    with _explained(name):
        return _decoded(data)


def displayed_size(path) -> tuple[int, int, int]:
    """Return (height, width, frames) of a file as `decode_file` would give it, from the header alone.

    Raises UserError like `decode_file`, but for pixels that are damaged or missing.
    """
    with _explained(path), _opened(path) as file:
        is_tiff = file.read(4) in tiff.MAGIC
        file.seek(0)
        if is_tiff:
            page = tiff.first_page(file)
            height, width, orientation, frames = page.height, page.width, page.orientation, page.pages
        else:
            with _pillow_image(file) as image:
                (width, height), frames = image.size, _frames(image)
                orientation = metadata.of_image(image, file).orientation
    return (width, height, frames) if orientation in (5, 6, 7, 8) else (height, width, frames)


def _decoded(data: bytes) -> Decoded:
    if data[:4] in tiff.MAGIC:
        page = tiff.first_page(io.BytesIO(data))
        samples, notes, has_own_profile = tiff.decode(page.page)
        file_format, frames = "TIFF", page.pages
        try:
            read = metadata.of_tiff(data, page.page.offset, has_own_profile)
        except ValueError as error:
            read, notes = Metadata(), (*notes, f"its tags are damaged ({error}); EXIF and the profile are left out.")
        orientation = page.orientation
    else:
        file = io.BytesIO(data)
        with _pillow_image(file) as image:
            needed = image.height * image.width * _BYTES_PER_PIXEL
            require_memory(needed, f"decoding {image.width}x{image.height} pixels")
            file_format, frames = image.format, _frames(image)
            samples, notes = _pixels(image, data)
            read = metadata.of_image(image, file)
        orientation = read.orientation
    if samples.ndim == 2:
        samples = samples[:, :, None]
    upright, damage = read.for_upright_picture()
    return Decoded(_turned(samples, orientation), file_format, upright, frames, (*notes, *damage))


@contextlib.contextmanager
def _pillow_image(file):
    try:
        image = Image.open(file, formats=_PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(12)
        brand = _BRANDS.get(start[8:]) if start[4:8] == b"ftyp" else None
        if not start:
            raise UserError("is empty; replace or remove it.") from error
        if brand and brand not in _PILLOW_FORMATS:
            raise UserError(f"is a {brand}, which needs another package: {_NEEDED[brand]}") from error
        raise UserError(f"not a picture ({READABLE}), or its header is corrupt; replace or remove it.") from error
    with image:
        yield image


def _pixels(image, data):
    """[H, W] or [H, W, C] as stored, and notes: by Pillow, but for PNG of 16 bits, of which it would keep 8."""
    if image.format == "PNG" and data[24] == 16:  # the header's bit depth
        return imagecodecs.png_decode(data), ()
    notes = []
    image.load()
    bits = _avif_bits(data) if image.format == "AVIF" else image.info.get("bit_depth", 8)  # pillow-heif says so
    if bits > 8:
        notes.append(f"has {bits} bits per channel, of which 8 are read.")
    if image.mode in ("CMYK", "LAB") and image.info.get("icc_profile"):
        notes.append(OTHER_COLOURS)
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    return np.asarray(image if image.mode == mode else image.convert(mode)), tuple(notes)


def _avif_bits(data):
    """Bits per channel, which stand in the box that configures the decoder of AV1."""
    place = data.find(b"av1C", 0, 2**16)
    flags = data[place + 6] if place >= 0 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _frames(image):
    """How many pictures there are; the previews behind a camera's JPEG (MPO) do not count."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _turned(samples, orientation):
    """Turn [H, W, C] as stored into the picture that EXIF orientation 1 to 8 means."""
    if orientation in (5, 6, 7, 8):  # the stored rows are the displayed columns
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


@contextlib.contextmanager
def _opened(path):
    """Open a file for reading; anything but a regular file, which could block or never end, is refused."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UserError(f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a picture; name a picture file.")
    with open(path, "rb") as file:
        yield file


@contextlib.contextmanager
def _explained(name):
    """Turn whatever goes wrong with a file into a UserError that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file; check the path.") from error
    except PermissionError as error:
        raise UserError(f"{name}: no permission to read it; change its mode or owner.") from error
    except MemoryError as error:
        raise UserError(f"{name}: the memory does not suffice to decode it; make it smaller.") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, IndexError, ... on corrupt data
        reason = getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
        raise UserError(f"{name}: cannot be decoded ({reason}); replace or remove it.") from error


IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"}
    | {".avif", ".heic", ".heif", ".hif"}
)


def read_rgb(path) -> np.ndarray:
    """Decode a picture to uint8 [H, W, 3] as it is displayed: EXIF orientation applied, alpha dropped, grey repeated.

    16-bit values are divided by 257 and rounded. Raises UserError like `decoding.decode_file`, and if the file holds
    several pictures.
    """
    return _rgb(decode_file(path), path)


def decode_rgb(data: bytes, name) -> np.ndarray:
    """Decode the content of a picture file like `read_rgb`; `name` stands for the file in messages."""
    return _rgb(decode_bytes(data, name), name)


def image_size(path) -> tuple[int, int]:
    """Return (height, width) in pixels as displayed, from the header alone. Raises UserError like `read_rgb`."""
    height, width, frames = displayed_size(path)
    _require_one(frames, path)
    return height, width


def list_images(folder) -> list[Path]:
    """Return every picture under `folder`, also in its subfolders, sorted by relative path.

    What other software left behind is left out, see `listing.is_leftover`. Raises UserError if the folder is missing,
    cannot be read or holds no picture, and naming a picture that is no regular file, such as a named pipe.
    """
    folder = Path(folder)
    found = [place.path / name for place in walk(folder) for name in picture_names(place.files)]
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{folder}: holds no pictures; expected files that end in {suffixes}.")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def picture_names(files) -> list[str]:
    """Return the names of the pictures among the entries of a folder; UserError for one that is no regular file."""
    pictures = [entry for entry in files if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES]
    for entry in pictures:
        require_file(entry)
    return [entry.name for entry in pictures]


def write_png(path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] to `path` as PNG; the file is either whole or absent."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}.")
    with written_atomically(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _rgb(decoded, name):
    _require_one(decoded.frames, name)
    samples = decoded.samples
    colour = samples[:, :, :3] if samples.shape[2] > 2 else samples[:, :, :1]
    if colour.dtype == np.uint16:
        colour = ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.array(np.broadcast_to(colour, (*colour.shape[:2], 3)), order="C")


def _require_one(frames, name):
    if frames > 1:
        raise UserError(f"{name}: holds {frames} pictures (frames or pages); make it one file for each.")
