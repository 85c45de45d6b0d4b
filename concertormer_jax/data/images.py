"""Picture files: reading them as 8-bit RGB, their sizes, listing and writing them."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from concertormer_jax.data.listing import require_file, walk
from concertormer_jax.errors import UserError
from concertormer_jax.files import written_atomically

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG = 0x0100, 0x0101, 0x0112
_PNG_ORIENTATION_KEYS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})


def read_rgb(path) -> np.ndarray:
    """Decode a picture to uint8 [H, W, 3] as it is displayed: EXIF orientation applied, alpha dropped, grey repeated.

    16-bit values are divided by 257 and rounded (colour PNG and TIFF: the high byte, as Pillow decodes them).
    Raises UserError naming the file if it is missing, no picture, corrupt or truncated.
    """
    with _opened(path) as image:
        return _displayed(image)


def decode_rgb(data: bytes, name) -> np.ndarray:
    """Decode the content of a picture file like `read_rgb`; `name` stands for the file in messages."""
    with _opened(io.BytesIO(data), name) as image:
        return _displayed(image)


def image_size(path) -> tuple[int, int]:
    """Return (height, width) in pixels as displayed, from the header alone. Raises UserError like `read_rgb`."""
    with _opened(path) as image:
        if image.format == "TIFF":  # the only format whose size Pillow turns by itself, and not in all its versions
            width, height = image.tag_v2[_WIDTH_TAG], image.tag_v2[_HEIGHT_TAG]
        else:
            width, height = image.size
        # Pillow decodes a whole PNG to look for an EXIF block behind the pixels; only ask if one was seen before them.
        if image.format == "PNG" and not _PNG_ORIENTATION_KEYS & image.info.keys():
            return height, width
        return (width, height) if image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8) else (height, width)


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


def _displayed(image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


@contextlib.contextmanager
def _opened(file, name=None):
    """Yield the opened Pillow image; whatever Pillow raises on a bad file becomes a UserError that names it.

    file: a path, or an open file that goes by `name` in messages.
    """
    name = file if name is None else name
    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file; check the path.") from error
    except PermissionError as error:
        raise UserError(f"{name}: no permission to read it; change its mode or owner.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not a picture, or its header is corrupt; replace or remove it.") from error
    except Exception as error:  # Pillow's plug-ins raise many kinds on corrupt data
        raise UserError(f"{name}: cannot be decoded ({error}); replace or remove it.") from error
