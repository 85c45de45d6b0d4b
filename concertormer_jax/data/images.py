"""Picture files: the one decoder for training, evaluation and restoration, sizes, listing, writing, and a cache."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import logging
import os
import stat
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import imagecodecs
import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from concertormer_jax.data import metadata, tiff
from concertormer_jax.data.listing import require_file, walk
from concertormer_jax.data.metadata import Metadata
from concertormer_jax.data.tiff import OTHER_COLOURS
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.memory import available_memory_bytes, require_memory
from concertormer_jax.runtime.paths import AnyPath

if importlib.util.find_spec("pillow_heif"):  # an optional package
    importlib.import_module("pillow_heif").register_heif_opener()
Image.init()
_PILLOW_FORMATS = [name for name in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF", "HEIF") if name in Image.OPEN]
# Pillow refuses pictures of more than 179 million pixels and profiles of more than 1 MB. Here `require_memory` decides.
Image.MAX_IMAGE_PIXELS = None
_MOST_TEXT_BYTES = 2**28
PngImagePlugin.MAX_TEXT_CHUNK = _MOST_TEXT_BYTES  # ty: ignore[invalid-assignment]  # a setting, which ty takes for final
PngImagePlugin.MAX_TEXT_MEMORY = _MOST_TEXT_BYTES  # ty: ignore[invalid-assignment]  # likewise
logging.getLogger("imagecodecs").disabled = True  # it logs errors that it also raises
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of damaged EXIF in words of the file

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"}
    | {".avif", ".heic", ".heif", ".hif"}
)
READABLE = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIC"
_BYTES_PER_PIXEL = 16  # that decoding and turning take, of three channels of 16 bits or four of 8
_BRANDS = {  # in the box `ftyp` with which files of these formats begin
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
}
_NEEDED = {"AVIF": "pip install -U pillow", "HEIF": "pip install pillow-heif (the extra `heif`)"}
_HEADER_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A picture as it is displayed: turned upright, its palette or CMYK colours made RGB.

    samples: uint8 or uint16 [H, W, C]; C = 1: grey, 2: grey and alpha, 3: RGB, 4: RGB and alpha. Colours are not
    multiplied by alpha. file_format: Pillow's name of the content's format. metadata: of the upright picture.
    frames: how many pictures the file holds; this is the first. notes: sentences on what was lost.
    """

    samples: np.ndarray
    file_format: str
    metadata: Metadata
    frames: int
    notes: tuple[str, ...]


def decode_file(path: AnyPath) -> Decoded:
    """Decode a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF, and a HEIC if `pillow-heif` is installed.

    Raises UserError naming the file if it is missing, no regular file, no such picture, corrupt, truncated, stored in a
    way that cannot be read right, or larger than the memory.
    """
    with _user_errors(path), _opened(path) as file:
        return _decoded(file.read())


def decode_bytes(data: bytes, name: object) -> Decoded:
    """Decode the content of a picture file like `decode_file`; `name` stands for the file in messages."""
    with _user_errors(name):
        return _decoded(data)


def displayed_size(path: AnyPath) -> tuple[int, int, int]:
    """Return (height, width, frames) of a file as `decode_file` would give it, from the header alone.

    Raises UserError like `decode_file`, except for damaged pixels, which it does not read.
    """
    with _user_errors(path), _opened(path) as file:
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
            assert image.format is not None  # only pictures that were not opened from a file have none
            file_format, frames = image.format, _frames(image)
            samples, notes = _pixels(image, data)
            read = metadata.of_image(image, file)
        orientation = read.orientation
    if samples.ndim == 2:
        samples = samples[:, :, None]
    upright, damage = read.for_upright_picture()
    return Decoded(_turned(samples, orientation), file_format, upright, frames, (*notes, *damage))


@contextlib.contextmanager
def _pillow_image(file: BinaryIO) -> Generator[Image.Image]:
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


def _pixels(image: Image.Image, data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """[H, W] or [H, W, C] as stored, and notes. Pillow decodes all but PNG of 16 bits, of which it would keep 8."""
    if image.format == "PNG" and data[24] == 16:  # the header's bit depth
        return imagecodecs.png_decode(data), ()
    notes = []
    image.load()
    bits = _avif_bits(data) if image.format == "AVIF" else image.info.get("bit_depth", 8)  # set by pillow-heif
    if bits > 8:
        notes.append(f"has {bits} bits per channel, of which 8 are read.")
    if image.mode in ("CMYK", "LAB") and image.info.get("icc_profile"):
        notes.append(OTHER_COLOURS)
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    return np.asarray(image if image.mode == mode else image.convert(mode)), tuple(notes)


def _avif_bits(data: bytes) -> int:
    """Bits per channel, from the flags in the box `av1C`."""
    place = data.find(b"av1C", 0, 2**16)
    flags = data[place + 6] if place >= 0 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _frames(image: Image.Image) -> int:
    """How many pictures the file holds, without the previews behind a camera's JPEG (MPO)."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _turned(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored samples [H, W, C] upright; orientation: EXIF's, 1 to 8."""
    if orientation in (5, 6, 7, 8):  # the stored rows are the displayed columns
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


@contextlib.contextmanager
def _opened(path: AnyPath) -> Generator[BinaryIO]:
    """Open a regular file for reading; any other kind is refused, as it could block or never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UserError(f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a picture; name a picture file.")
    with open(path, "rb") as file:
        yield file


@contextlib.contextmanager
def _user_errors(name: object) -> Generator[None]:
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


def read_rgb(path: AnyPath) -> np.ndarray:
    """Decode a picture to uint8 [H, W, 3] as it is displayed: EXIF orientation applied, alpha dropped, grey repeated.

    16-bit values are divided by 257 and rounded. Raises UserError like `decode_file`, and if the file holds several
    pictures.
    """
    return _rgb(decode_file(path), path)


def decode_rgb(data: bytes, name: object) -> np.ndarray:
    """Decode the content of a picture file like `read_rgb`; `name` stands for the file in messages."""
    return _rgb(decode_bytes(data, name), name)


def image_size(path: AnyPath) -> tuple[int, int]:
    """Return (height, width) in pixels as displayed, from the header alone. Raises UserError like `read_rgb`."""
    height, width, frames = displayed_size(path)
    _require_one(frames, path)
    return height, width


def list_images(folder: AnyPath) -> list[Path]:
    """Return every picture in `folder` and its subfolders, sorted by relative path, without those of `is_leftover`.

    Raises UserError if the folder is missing, cannot be read or holds no picture, and if a picture is no regular file,
    such as a named pipe.
    """
    folder = Path(folder)
    found = [place.path / name for place in walk(folder) for name in picture_names(place.files)]
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{folder}: holds no pictures; expected files that end in {suffixes}.")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def images_by_name(folder: AnyPath, name_of: Callable[[str], str] = str) -> dict[str, Path]:
    """Return `list_images(folder)` by name: the path below `folder` without extension, changed by `name_of`.

    Raises UserError like `list_images`, and if two pictures have the same name.
    """
    named: dict[str, Path] = {}
    for path in list_images(folder):
        name = name_of(path.relative_to(folder).with_suffix("").as_posix())
        if name in named:
            raise UserError(f"{path}: {named[name].name} has the same name; remove one of the two.")
        named[name] = path
    return named


def picture_names(files: Iterable[os.DirEntry]) -> list[str]:
    """Return the names of the pictures among the entries of a folder. Raises UserError if one is no regular file."""
    pictures = [entry for entry in files if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES]
    for entry in pictures:
        require_file(entry)
    return [entry.name for entry in pictures]


def write_png(path: AnyPath, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] to `path` as PNG, atomically. Raises ValueError for another type or shape."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}.")
    with written_atomically(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Return uint8 pixels as they are, and floats on the scale from 0 to 255 clipped and rounded; any shape."""
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _rgb(decoded: Decoded, name: object) -> np.ndarray:
    _require_one(decoded.frames, name)
    samples = decoded.samples
    colour = samples[:, :, :3] if samples.shape[2] > 2 else samples[:, :, :1]
    if colour.dtype == np.uint16:
        colour = ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.array(np.broadcast_to(colour, (*colour.shape[:2], 3)), order="C")


def _require_one(frames: int, name: object) -> None:
    if frames > 1:
        raise UserError(f"{name}: holds {frames} pictures (frames or pages); make it one file for each.")


class ImageReader:
    """`reader(key)` is `read(key)`. With `cached`, each picture is decoded once and is read-only.

    Any number of threads may call it. read: (hashable) key to uint8 array; None: `read_rgb`, whose keys are paths.
    """

    def __init__(self, cached: bool, read: Callable[[Any], np.ndarray] | None = None):
        self._images: dict[Any, np.ndarray] | None = {} if cached else None
        self._decode = read or read_rgb

    def __call__(self, key: Any) -> np.ndarray:
        if self._images is None:
            return self._decode(key)
        image = self._images.get(key)
        if image is None:
            decoded = self._decode(key)
            decoded.flags.writeable = False
            # Two threads may decode one picture at the same time; both go on with the array that was stored first.
            image = self._images.setdefault(key, decoded)
        return image


def image_sizes(paths: Iterable[AnyPath]) -> list[tuple[int, int]]:
    """Return (height, width) of every file, from the headers, read in threads; a bar shows after two seconds.

    Raises UserError naming the first file that is missing or no picture.
    """
    paths = list(paths)
    with ThreadPoolExecutor(_HEADER_THREADS) as threads:
        sizes = threads.map(image_size, paths)
        return list(tqdm(sizes, total=len(paths), desc="reading picture sizes", unit="file", delay=2, leave=False))


def decoded_bytes(paths: Iterable[AnyPath]) -> int:
    """Return the bytes that the pictures take together once decoded, from their headers."""
    return sum(3 * height * width for height, width in image_sizes(paths))


class _HasPictures(Protocol):
    def decoded_bytes(self) -> int: ...


def require_memory_for(source: _HasPictures) -> int:
    """Return `source.decoded_bytes()`, the size of a cache of its pictures. Raises UserError if it does not fit."""
    needed, available = source.decoded_bytes(), available_memory_bytes()
    if needed > available:
        raise UserError(
            f"the cache of decoded pictures takes {needed / 2**30:.1f} GiB but {available / 2**30:.1f} GiB of memory "
            "are available; switch the cache off (config.run.cache=False) or train on fewer pictures."
        )
    return needed
