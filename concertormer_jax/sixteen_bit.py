"""PNG and TIFF with 16 bits per channel: Pillow cannot hold such colour pictures, OpenCV cannot write their metadata.

OpenCV decodes them; the two encoders here write what either format needs, uncompressed (TIFF) or deflated (PNG).
"""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

_PNG_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey with alpha, RGB, RGB with alpha
_PNG_FILTER_UP = 2
_EXIF_PREFIX = b"Exif\x00\x00"  # what Pillow puts before the block and PNG leaves out


def decode(data: bytes) -> np.ndarray:
    """Decode a PNG or TIFF to uint16 [H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGB, alpha); grey with alpha has C = 4.

    The pixels are as stored, not turned. Raises ValueError if OpenCV cannot decode it to 16 bits.
    """
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("not a 16-bit picture that OpenCV can decode")
    if samples.ndim == 2:
        return samples[:, :, None]
    return samples[:, :, [2, 1, 0, 3][: samples.shape[2]]]


def png(samples: np.ndarray, exif: bytes, icc_profile: bytes) -> bytes:
    """Encode uint16 [H, W, C], C = 1 to 4 (grey, grey and alpha, RGB, RGB and alpha), as PNG.

    exif: a block as Pillow's `Image.Exif.tobytes` gives it; icc_profile: likewise raw; empty for none.
    """
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    differences = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    filtered = np.concatenate([np.full((height, 1), _PNG_FILTER_UP, np.uint8), differences], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR_TYPE[channels], 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if icc_profile:
        chunks.append((b"iCCP", b"ICC profile\x00\x00" + zlib.compress(icc_profile)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(_EXIF_PREFIX)))
    chunks += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(samples: np.ndarray, exif: bytes, icc_profile: bytes) -> bytes:
    """Encode uint16 [H, W, C], C = 1, 3 or 4 (grey, RGB, RGB and alpha), as an uncompressed TIFF of one strip.

    exif, icc_profile: as in `png`.
    """
    height, width, channels = samples.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    information = Image.Exif()
    information.load(exif)
    for tag, value in information.items():
        directory[tag] = information.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else value
    directory[TiffImagePlugin.IMAGEWIDTH] = width
    directory[TiffImagePlugin.IMAGELENGTH] = height
    directory[TiffImagePlugin.BITSPERSAMPLE] = (16,) * channels
    directory[TiffImagePlugin.COMPRESSION] = 1
    directory[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels == 1 else 2
    directory[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    directory[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    directory[TiffImagePlugin.ROWSPERSTRIP] = height
    directory.tagtype[TiffImagePlugin.STRIPBYTECOUNTS] = TiffTags.LONG
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = samples.nbytes
    directory.tagtype[TiffImagePlugin.STRIPOFFSETS] = TiffTags.LONG
    directory[TiffImagePlugin.STRIPOFFSETS] = 0  # Pillow adds where the directory ends
    if channels == 4:
        directory[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha that is not multiplied into the colours
    if icc_profile:
        directory.tagtype[TiffImagePlugin.ICCPROFILE] = TiffTags.UNDEFINED
        directory[TiffImagePlugin.ICCPROFILE] = icc_profile
    file = io.BytesIO()
    directory.save(file)
    file.write(samples.astype("<u2").tobytes())
    return file.getvalue()
