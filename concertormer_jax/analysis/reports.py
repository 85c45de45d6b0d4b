"""Results of attributions and receptive fields: pictures for the eye, and tables of the diffusion index."""

import dataclasses
import json
import statistics

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw

from concertormer_jax.analysis.attribution import holding
from concertormer_jax.analysis.windows import Window
from concertormer_jax.photos.sheets import side_by_side
from concertormer_jax.runtime.errors import printable

SHOWN_PX = 480  # smaller pictures are enlarged by a whole factor to at least this side
AREA_SMOOTHING = 1 / 25  # standard deviation of the smoothing, as a share of the picture's shorter side
AREA_SHARE = 0.9  # of the contributions, which the outline holds
FIELD_DECADES = 5  # the receptive field is shown down to 10^-5 of its largest value
# From low to high. The lightness rises, so that the order can be seen in grey as well.
_COLOURS = np.array([(8, 8, 32), (70, 20, 110), (160, 40, 110), (230, 90, 60), (250, 170, 50), (252, 250, 190)], float)
_MARK = (0, 230, 255)
COMPLETENESS_TOLERANCE = 0.02


def coloured(values: np.ndarray) -> np.ndarray:
    """Return the colours, dark blue over red to light yellow, of numbers [H, W] in [0, 1]: uint8 [H, W, 3]."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def attribution_sheet(picture: np.ndarray, strength: np.ndarray, window: Window) -> Image.Image:
    """Draw the picture, the attributions over it, and the contribution area side by side, each with the window.

    picture: uint8 [H, W, 3]; strength: [H, W] in [0, 1]. The attributions appear as their square roots, since most are
    small. The contribution area is `contribution_density`, with the outline of the smallest area that holds
    `AREA_SHARE` of it.
    """
    density = contribution_density(strength)
    panels = {
        "picture and window": _enlarged(picture),
        "attribution (square root)": _enlarged(_laid_over(picture, np.sqrt(strength))),
        f"contribution area, outline: {AREA_SHARE:.0%}": _outlined(
            _enlarged(_laid_over(picture, density / density.max())), holding(density, AREA_SHARE)
        ),
    }
    return side_by_side([_with_window(panel, window, _scale(picture)) for panel in panels.values()], list(panels))


def contribution_density(strength: np.ndarray) -> np.ndarray:
    """Return `strength`, [H, W], smoothed with a Gaussian and divided by its sum."""
    smooth = scipy.ndimage.gaussian_filter(strength, AREA_SMOOTHING * min(strength.shape), mode="constant")
    return smooth / smooth.sum()


def receptive_field_picture(field: np.ndarray, radii: dict[str, float]) -> Image.Image:
    """Draw the field, [H, W], on a logarithmic scale over `FIELD_DECADES`, with a circle for each radius in pixels.

    The centre of the circles is the pixel in row H // 2 and column W // 2. The names of the radii stand above.
    """
    decades = np.log10(np.maximum(field / field.max(), 10.0**-FIELD_DECADES))
    shown, scale = Image.fromarray(_enlarged(coloured(1 + decades / FIELD_DECADES))), _scale(field)
    draw = ImageDraw.Draw(shown)
    y, x = ((length // 2 + 0.5) * scale for length in field.shape)
    for radius in radii.values():
        reach = (radius + 0.5) * scale
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=_MARK, width=2)
    label = f"|gradient|, {FIELD_DECADES} decades; circles hold {', '.join(radii)}"
    return side_by_side([np.asarray(shown)], [label])


def _scale(picture: np.ndarray) -> int:
    return max(1, -(-SHOWN_PX // min(picture.shape[:2])))


def _enlarged(picture: np.ndarray) -> np.ndarray:
    scale = _scale(picture)
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _laid_over(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 - values) * the picture in dark grey + values * their colours."""
    grey = np.repeat(picture.mean(axis=2, keepdims=True) / 2, 3, axis=2)
    opacity = values[:, :, None]
    return np.rint(grey * (1 - opacity) + coloured(values) * opacity).astype(np.uint8)


def _outlined(shown: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Draw the border of `inside`, bool [H, W], into the enlarged picture."""
    inside = _enlarged(inside)
    border = inside & ~scipy.ndimage.binary_erosion(inside, iterations=2, border_value=1)
    return np.where(border[:, :, None], np.uint8(255), shown)


def _with_window(shown: np.ndarray, window: Window, scale: int) -> np.ndarray:
    image = Image.fromarray(shown)
    left, top, right, bottom = (scale * n for n in (window.x, window.y, window.x + window.size, window.y + window.size))
    ImageDraw.Draw(image).rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=_MARK, width=2)
    return np.asarray(image)


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one picture. height, width: of the part that the network saw; window: as on the command line."""

    name: str
    height: int
    width: int
    window: str
    diffusion_index: float
    completeness: float


def results_json(checkpoint: str, settings: dict, rows: list[Row]) -> str:
    """Return the settings, the mean index and every picture's result as JSON."""
    content = {
        "checkpoint": checkpoint,
        "settings": settings,
        "images": len(rows),
        "mean": {"diffusion_index": statistics.fmean(row.diffusion_index for row in rows)},
        "per_image": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def markdown_table(checkpoint: str, rows: list[Row]) -> str:
    """Return a Markdown table with a row for every picture, and for several their mean ± standard deviation."""
    lines = [
        ["checkpoint", "picture", "pixels seen", "window", "diffusion index", "completeness"],
        ["---", "---", "---", "---", "---:", "---:"],
    ]
    for row in rows:
        seen = f"{row.width}x{row.height}"
        index = f"{row.diffusion_index:.2f}"
        lines.append([checkpoint, row.name, seen, row.window, index, f"{row.completeness:.1%}"])
    if len(rows) > 1:
        indices = [row.diffusion_index for row in rows]
        mean = f"{statistics.fmean(indices):.2f} ± {statistics.stdev(indices):.2f}"
        lines.append([checkpoint, f"mean of {len(rows)} ± standard deviation", "", "", mean, ""])
    escaped = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def warnings(rows: list[Row]) -> list[str]:
    """Return sentences on why the numbers may mean less than they seem to."""
    sentences = []
    incomplete = [row for row in rows if abs(row.completeness - 1) > COMPLETENESS_TOLERANCE]
    if incomplete:
        sentences.append(
            f"the contributions of {len(incomplete)} of {len(rows)} pictures differ from the detector's change by more "
            f"than {COMPLETENESS_TOLERANCE:.0%}, the first is {incomplete[0].name}; give more --steps."
        )
    if len({(row.height, row.width) for row in rows}) > 1:
        sentences.append("the pictures differ in size, on which the index depends; give a --crop that all contain.")
    return sentences
