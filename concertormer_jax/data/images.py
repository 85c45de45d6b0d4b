"""Picture files: reading them as 8-bit RGB, their sizes, listing and writing them."""

from pathlib import Path

import numpy as np
from PIL import Image

from concertormer_jax.data.decoding import decode_bytes, decode_file, displayed_size
from concertormer_jax.data.listing import require_file, walk
from concertormer_jax.errors import UserError
from concertormer_jax.files import written_atomically

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
