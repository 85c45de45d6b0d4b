"""Figures drawn from the code's structure alone: no weights, and pictures only as illustration."""

import jax.numpy as jnp
import numpy as np
from PIL import Image

from concertormer_jax.ops import blocks as block_ops
from concertormer_jax.ops import image as image_ops
from concertormer_jax.ops.layers import window_starts
from docs.figures.drawing import INK, KEY, QUERY, THIRD, arrow, box, canvas, figure, finished, picture

BLOCK_PX = 8


def pyramid(photo: np.ndarray, levels: int, multiple: int) -> Image.Image:
    """The padded picture and its reductions, all in one scale. photo: uint8 [H, W, 3]."""
    height, width = photo.shape[:2]
    padded = np.asarray(image_ops.pad_to_multiple(photo[None] / np.float32(255), multiple))
    pictures = [padded[0]] + [np.asarray(image_ops.downsample(padded, 2**i))[0] for i in range(1, levels + 1)]
    drawn, axes = figure(9, 3.8, levels + 1, width_ratios=[part.shape[1] + 24 for part in pictures])
    for level, (panel, part) in enumerate(zip(axes, pictures, strict=True)):
        title = f"$I_{level}$: {part.shape[1]}x{part.shape[0]}"
        picture(panel, part, title, extent=(0, part.shape[1], part.shape[0], 0))
        panel.set_anchor("N")
    frame = ([0, width, width], [height, height, 0])
    axes[0].plot(*frame, color="white", lw=2)
    axes[0].plot(*frame, color=QUERY, lw=2, linestyle="--")
    axes[0].set_xlabel(
        f"red: the picture's own {width}x{height};\nbeyond it is its reflection", fontsize=8, color=QUERY
    )
    return finished(drawn)


def unet(module, inputs, outputs) -> Image.Image:
    """The U-Net of `module` with its stages, skips and pictures. inputs, outputs: [H, W, 3] in [0, 1], finest first."""
    levels = module.levels
    start, right = -0.45, 2 * levels + 2.45  # of the pictures
    drawn, axes = canvas(11, 1.3 * (levels + 1), (0, 1), (0, 1))

    def stage(name, column, level, blocks, heads):
        text = f"{name}\n{module.width * 2**level} channels\n{blocks} blocks, {heads} head{'s' * (heads > 1)}"
        box(axes, column, -level, text, 1.04, 0.52, size=8)

    def shown(part, x, y):
        half = 0.3 * 0.72**-y + 0.06
        axes.imshow(np.clip(part, 0, 1), extent=(x - half, x + half, y - half * 0.75, y + half * 0.75), aspect="auto")
        return half

    for level in range(levels):
        stage(f"encoders_{level}", 1 + level, level, module.encoder_blocks[level], module.encoder_heads[level])
        index = levels - 1 - level
        column = 2 * levels + 1 - level
        stage(f"decoders_{index}", column, level, module.decoder_blocks[index], module.decoder_heads[index])
        arrow(
            axes,
            (1 + level, -level - 0.26),
            (1.98 + level if level < levels - 1 else 2 + level, -level - 0.74),
            colour=THIRD,
        )
        arrow(axes, (column - 1, -level - 0.74), (column, -level - 0.26), colour=THIRD)
        arrow(axes, (1.52 + level, -level), (column - 0.52, -level), "skip: keys, values", colour=KEY, dashed=True)
    stage("middle", 1 + levels, levels, module.middle_blocks, module.middle_heads)
    for level in range(levels + 1):
        half = shown(inputs[level], start, -level)
        text = "intro" if level == 0 else f"intros_{level - 1}: keys, values"
        style = {"colour": KEY, "dashed": True} if level else {}
        arrow(axes, (start + half, -level), (0.48 + level, -level), text, **style)
        half = shown(outputs[level], right, -level)
        text = "ending, $+ I_0$" if level == 0 else f"endings_{levels - level}, $+ I_{level}$"
        arrow(axes, (2 * levels + 1.52 - level, -level), (right - half, -level), text)
    axes.text(1.75, -0.42, "downs: half the size,\ntwice the channels", fontsize=8, color=THIRD, va="center")
    axes.text(2 * levels + 0.25, -0.42, "ups: pixel shuffle", fontsize=8, color=THIRD, va="center", ha="right")
    axes.set_aspect("auto")
    axes.set(xlim=(start - 0.45, right + 0.45), ylim=(-levels - 0.4, 0.4))
    return finished(drawn)


def block() -> Image.Image:
    """One block: Concerto self-attention inside a gated MLP."""
    drawn, axes = canvas(11, 3.5, (-1.0, 11.3), (-1.7, 1.75))
    box(axes, 0.9, 0, "norm", 0.8)
    box(axes, 0.9, 1.3, "norm2", 0.8)
    box(axes, 2.5, 0.65, "queries q\nkeys k, values v", 1.3, 1.0, "#d6eaf8")
    box(axes, 4.6, 0.65, "four groups:\nlogits, CDC,\nmask, softmax, v", 1.6, 1.0, "#f5d6d1")
    box(axes, 6.3, 0.65, "SCA", 0.8, 0.6, "#fcf3cf")
    box(axes, 7.5, 0.65, "project", 0.9, 0.5)
    box(axes, 2.5, -0.75, "u, z", 0.9, 0.5, "#d5f5e3")
    box(axes, 5.4, -0.55, "depthwise 3x3 of u", 1.8, 0.45, "#d5f5e3")
    box(axes, 9.5, -0.75, "project_out", 1.1, 0.5)
    arrow(axes, (-0.9, 0), (0.5, 0), "x")
    arrow(axes, (-0.9, 1.3), (0.5, 1.3), "y: picture or skip", colour=KEY, dashed=True)
    arrow(axes, (1.3, 0.1), (1.85, 0.5))
    arrow(axes, (1.3, 1.2), (1.85, 0.9), colour=KEY, dashed=True)
    arrow(axes, (1.3, -0.1), (2.05, -0.65))
    for start, end in ((3.15, 3.8), (5.4, 5.9), (6.7, 7.05)):
        arrow(axes, (start, 0.65), (end, 0.65))
    arrow(axes, (2.95, -0.65), (4.5, -0.55), "u", above=0.0)
    arrow(axes, (6.3, -0.55), (8.04, -0.09))
    arrow(axes, (7.95, 0.65), (8.16, 0.14))
    arrow(axes, (2.95, -0.85), (8.06, -1.0), "z", above=0.02)
    arrow(axes, (8.2, -0.12), (8.2, -0.83))
    arrow(axes, (8.35, -0.92), (8.95, -0.8))
    for x, y, sign in ((8.2, 0.02, "+"), (8.2, -0.97, "×"), (10.6, -0.75, "+")):
        axes.text(
            x,
            y,
            sign,
            ha="center",
            va="center",
            fontsize=11,
            color=INK,
            zorder=3,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": INK},
        )
    arrow(axes, (10.05, -0.75), (10.46, -0.75))
    arrow(axes, (10.74, -0.75), (11.2, -0.75))
    axes.plot([-0.2, -0.2, 10.6], [0, -1.5, -1.5], color=INK, lw=1.2)
    arrow(axes, (10.6, -1.5), (10.6, -0.9))
    axes.text(5.4, -1.47, "residual", fontsize=8, color=INK, ha="center", va="bottom")
    axes.text(4.6, 1.3, "on blocks of 8x8 pixels, in every other block moved by 4", fontsize=8, color=INK, ha="center")
    return finished(drawn)


def partition_and_shift(photo: np.ndarray) -> Image.Image:
    """Blocks, shifted blocks, and the mask of what meets over the border. photo: uint8 [32, 32, 3]."""
    side, half = len(photo), BLOCK_PX // 2
    count = side // BLOCK_PX
    grid = block_ops.Grid(count, count, BLOCK_PX)
    shifted = block_ops.split_blocks(grid, jnp.asarray(photo, jnp.float32)[None], True)
    rolled = np.asarray(block_ops.unpartition(shifted, grid))[0].astype(np.uint8)
    drawn, axes = figure(11, 3.3, 4)
    for panel, image, title in (
        (axes[0], photo, "blocks of 8x8 pixels\n"),
        (
            axes[1],
            rolled,
            "every other time moved by 4 pixels:\ncoloured stripes come from the other side",
        ),
    ):
        picture(panel, image, title, extent=(0, side, side, 0))
        for edge in range(0, side + 1, BLOCK_PX):
            panel.axhline(edge, color="white", lw=1.4)
            panel.axvline(edge, color="white", lw=1.4)
    axes[1].axhspan(side - half, side, color=QUERY, alpha=0.42, lw=0)
    axes[1].axvspan(side - half, side, color=KEY, alpha=0.42, lw=0)
    crosses = np.asarray(block_ops.crosses_border(grid)).reshape(count, count, BLOCK_PX**2, BLOCK_PX**2)
    for panel, (row, column), title in (
        (axes[2], (0, count - 1), "mask of a block at the right border"),
        (axes[3], (count - 1, count - 1), "mask of the block in the corner"),
    ):
        picture(panel, crosses[row, column], f"{title}:\nblack pairs of its 64 pixels get -100", cmap="Greys")
        panel.set(xlabel="key pixel, 0 to 63", ylabel="query pixel")
    return finished(drawn)


def groups() -> Image.Image:
    """What each group compares: two vectors of a feature map of 3 channels and 2x2 blocks (of 4x4 pixels here)."""
    size, channels = 4, 3
    inside, everywhere = [(0, 0)], [(0, 0), (0, 1), (1, 0), (1, 1)]
    all_pixels = [(row, column) for row in range(size) for column in range(size)]
    one, other = [(1, 1)], [(2, 3)]
    told = [  # group; channels, blocks and pixels of the query's vector and of the key's; what that means
        (
            "Ripieno, spatial",
            ((range(channels), inside, one), (range(channels), inside, other)),
            "compares two pixels of a block by all their channels",
            "a map of 64x64 for each block and head; CDC: between neighbouring blocks, and heads",
        ),
        (
            "Ripieno, channel",
            (([0], inside, all_pixels), ([2], inside, all_pixels)),
            "compares two channels in a block by all pixels of the block",
            "a map of c x c for each block and head; CDC: between neighbouring blocks, and heads",
        ),
        (
            "Concertino, channel",
            (([0], everywhere, one), ([2], everywhere, one)),
            "compares two channels at one place of the blocks, by that place in all blocks",
            "a map of c x c for each of the 64 places and head; CDC: between places, and heads",
        ),
        (
            "Concertino, spatial",
            (([0], everywhere, one), ([0], everywhere, other)),
            "compares two places of the blocks in one channel, by these places in all blocks",
            "a map of 64x64 for each channel and head; CDC: between channels, and heads",
        ),
    ]
    pitch, gap = 2 * size + 2, 1
    drawn, axes = canvas(10.5, 5, (-0.5, 77), (-pitch * len(told) + 1.4, 1))
    for row, (title, pair, compared, maps) in enumerate(told):
        bottom = -row * pitch - 2 * size
        for channel in range(channels):
            sheet = np.ones((2 * size, 2 * size, 3))
            for colour, (of_channels, blocks, places) in zip((QUERY, KEY), pair, strict=True):
                for down, right in blocks if channel in of_channels else ():
                    for y, x in places:
                        sheet[down * size + y, right * size + x] = _rgb(colour)
            _sheet(axes, sheet, size, channel * (2 * size + gap), bottom)
        left = channels * (2 * size + gap) + 1
        axes.text(left, bottom + 6.2, title, fontsize=11, fontweight="bold", color=INK, va="center")
        axes.text(left, bottom + 3.9, compared, fontsize=9.5, color=INK, va="center")
        axes.text(left, bottom + 1.9, maps, fontsize=9.5, color=INK, va="center")
    for channel in range(channels):
        axes.text(channel * (2 * size + gap) + size, 0.3, f"channel {channel + 1}", fontsize=8, color=INK, ha="center")
    axes.set(aspect="equal", xlim=(-0.5, 77), ylim=(-pitch * len(told) + 1.4, 1.6))
    return finished(drawn)


def _sheet(axes, sheet, size, left, bottom):
    """One channel as a sheet of pixels, with the borders of its blocks."""
    side = len(sheet)
    axes.imshow(sheet, extent=(left, left + side, bottom, bottom + side), interpolation="nearest")
    for edge in range(side + 1):
        border = edge % size == 0
        line = {"color": INK if border else "#b0b7bd", "lw": 1.4 if border else 0.5, "zorder": 2 + border}
        axes.plot([left, left + side], [bottom + edge] * 2, **line)
        axes.plot([left + edge] * 2, [bottom, bottom + side], **line)


def _rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def local_windows(photo: np.ndarray, window: int) -> Image.Image:
    """Where the test-time local converter cuts. photo: uint8 [H, W, 3]; window: in pixels."""
    height, width = photo.shape[:2]
    rows, columns = window_starts(height, window), window_starts(width, window)
    count = np.zeros((height, width), int)
    drawn, (left, right) = figure(10, 3.3, 2)
    picture(left, photo, f"{len(rows) * len(columns)} windows of {window} pixels on {width}x{height}")
    from matplotlib.patches import Rectangle

    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            count[row : row + window, column : column + window] += 1
            inset = 3 + 4 * ((i + j) % 2)
            shape = {"fill": False, "edgecolor": (QUERY, "white", KEY, THIRD)[(i * len(columns) + j) % 4], "lw": 2}
            left.add_patch(Rectangle((column + inset, row + inset), window - 2 * inset, window - 2 * inset, **shape))
    picture(right, count, "how many windows' results are averaged", cmap="YlOrBr", vmin=0, vmax=count.max())
    for value in np.unique(count):
        y, x = _inside(count == value)
        colour = "white" if value == count.max() else INK
        right.text(x, y, str(value), ha="center", va="center", fontsize=12, color=colour)
    return finished(drawn)


def _inside(region):
    """A point well inside a region: the middle of the first rectangle of it that is met."""
    top, left = np.argwhere(region)[0]
    bottom = top + np.argmin(np.append(region[top:, left], False))
    right = left + np.argmin(np.append(region[top, left:], False))
    return (top + bottom) / 2, (left + right) / 2
