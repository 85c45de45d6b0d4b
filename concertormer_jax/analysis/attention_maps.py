"""The attention maps of a block, with and without cross-dimensional communication (CDC), and a picture of them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from concertormer_jax.analysis.reports import coloured
from concertormer_jax.models import LOGITS, Network
from concertormer_jax.ops.concerto import GROUPS
from concertormer_jax.ops.image import padded_size
from concertormer_jax.photos.sheets import side_by_side
from concertormer_jax.runtime.errors import UserError

CELL_PX = 192  # least side of a map in the picture
_TITLES = {  # of each group: its name in the picture, and which of its maps is drawn
    "ripieno_spatial": ("Ripieno, spatial", "the middle block"),
    "ripieno_channel": ("Ripieno, channel", "the middle block"),
    "concertino_channel": ("Concertino, channel", "the blocks' middle pixel"),
    "concertino_spatial": ("Concertino, spatial", "the first channel"),
    "window": ("Window attention", "the middle block"),
    "transposed": ("Transposed attention", "all pixels"),
}


class Maps(NamedTuple):
    """Attention maps of one group, [maps, heads, A, A]: softmax of the logits, so that each row sums to 1.

    The table in `ops.concerto` says what the axes `maps` and A are. before: without CDC and without the shift's mask;
    after: with both, as the block attends.
    """

    before: np.ndarray
    after: np.ndarray


def stages(params: dict[str, Any]) -> dict[str, int]:
    """Return the stages of the network that have Concerto self-attention, with their number of blocks."""
    found = {}
    for name, stage in params.items():
        attention = stage.get("blocks", {}).get("attention", {})
        if "to_kv" in attention:
            found[name] = len(attention["to_kv"])
    return found


def attention_maps(
    module: Network, params: dict[str, Any], image: np.ndarray, stage: str, block: int
) -> dict[str, Maps]:
    """Return the maps of every group of one block for a picture, float32 [H, W, 3] in [0, 1].

    block: its number in `stage`, from 0. Raises UserError for a stage or block that the network does not have.
    """
    known = stages(params)
    if not known:
        raise UserError("--ckpt: the network has no Concerto self-attention, so there are no maps to show.")
    if stage not in known:
        raise UserError(f"--stage={stage}: is no stage with attention of this network; choose {', '.join(known)}.")
    if not 0 <= block < known[stage]:
        raise UserError(f"--block={block + 1}: {stage} has {known[stage]} blocks; give a number from 1 to that.")
    with jax.default_matmul_precision("highest"):
        maps = jax.device_get(_maps(module, params, image[None], stage, block))
    heads = params[stage]["blocks"]["attention"].get("temperature", np.ones(1)).shape[-1]
    return {
        group: Maps(*(_with_heads(group, part, heads) for part in maps[group])) for group in GROUPS if group in maps
    }


@partial(jax.jit, static_argnames=("module", "stage", "block"))
def _maps(module: Network, params: dict, images: jax.Array, stage: str, block: int) -> dict[str, Any]:
    module = module.clone(implementation="reference")
    _, sown = module.apply({"params": params}, images, mutable=[LOGITS])
    groups = sown[LOGITS][stage]["blocks"]["attention"]
    return jax.tree.map(lambda logits: jax.nn.softmax(logits[block, 0].astype(jnp.float32)), groups)


def _with_heads(group: str, maps: np.ndarray, heads: int) -> np.ndarray:
    """The maps of one image as [maps, heads, A, A]."""
    if group == "concertino_spatial":  # [heads * channels, A, A]
        return maps.reshape(heads, -1, *maps.shape[1:]).swapaxes(0, 1)
    return maps[None] if group == "transposed" else maps


def attention_sheet(maps: dict[str, Maps], height: int, width: int, multiple: int) -> Image.Image:
    """Draw one map of every group before and after CDC side by side, with a row for each head.

    The colours of a map span its own smallest to largest value, which stand above it. height, width: of the picture in
    pixels; multiple: the network pads the picture to multiples of it, which decides which block is the middle one.
    """
    aspect = padded_size(height, multiple) / padded_size(width, multiple)
    one_of_each = {group: [part[_index(group, part, aspect)] for part in pair] for group, pair in maps.items()}
    heads = [
        _row([part[head] for pair in one_of_each.values() for part in pair])
        for head in range(len(next(iter(one_of_each.values()))[0]))
    ]
    bar, gap = 56, 8
    sheet = Image.new("RGB", (heads[0].width, bar + sum(row.height + gap for row in heads)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=20), ImageFont.load_default(size=16)
    pitch = sheet.width / len(maps)
    for number, group in enumerate(maps):
        title, which = _TITLES[group]
        draw.text((number * pitch + 4, 14), title, (20, 20, 20), font, anchor="lm")
        draw.text((number * pitch + 4, 40), f"{which}; before, after CDC", (90, 90, 90), small, anchor="lm")
    top = bar
    for row in heads:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def _row(cells: list[np.ndarray]) -> Image.Image:
    side = max(CELL_PX, *(len(cell) for cell in cells))
    pictures = [
        np.asarray(Image.fromarray(_between_extremes(cell)).resize((side, side), Image.Resampling.NEAREST))
        for cell in cells
    ]
    return side_by_side(pictures, [f"{cell.min():.3g} to {cell.max():.3g}" for cell in cells])


def _between_extremes(cell: np.ndarray) -> np.ndarray:
    low, high = cell.min(), cell.max()
    return coloured((cell - low) / (high - low if high > low else 1))


def _index(group: str, maps: np.ndarray, aspect: float) -> int:
    """The index of the map that is drawn. aspect: height / width of the grid of blocks."""
    count = len(maps)
    if group == "concertino_channel":  # one map for each position
        side = round(count**0.5)
        return side // 2 * side + side // 2
    if group in ("concertino_spatial", "transposed"):
        return 0
    rows = round((count * aspect) ** 0.5)
    columns = count // rows
    return rows // 2 * columns + columns // 2
