"""One pair of a set on the disk, whatever form its author gave it: `name`, and what these functions say of it."""

import dataclasses
import io

from PIL import Image

from concertormer_jax.data.folders import Pair
from concertormer_jax.data.sidd_blocks import SiddBlocks


@dataclasses.dataclass(frozen=True)
class BlockPair:
    """Block `index` of SIDD's two .mat files, named `files`."""

    name: str
    blocks: SiddBlocks
    index: int
    files: tuple[str, str]


def labels(item: Pair | BlockPair) -> tuple[str, str]:
    """Return what to call input and target in messages: their paths."""
    if isinstance(item, Pair):
        return str(item.input), str(item.target)
    return tuple(f"{file}, block {item.name}" for file in item.files)


def encoded(item: Pair | BlockPair) -> tuple[bytes, bytes]:
    """Return input and target as the content of picture files."""
    if isinstance(item, Pair):
        return item.input.read_bytes(), item.target.read_bytes()
    return tuple(as_png(pixels) for pixels in item.blocks.whole(item.index))


def as_png(pixels) -> bytes:
    """Encode uint8 [H, W, 3] without loss, quickly rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
