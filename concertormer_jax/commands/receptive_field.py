"""Measure how far the network sees: `concertormer receptive_field --ckpt=DIR IMAGE`.

The effective receptive field (Luo et al., NeurIPS 2016) is |gradient| of the pixel in the middle of the output by every
pixel of the input. It is averaged over the pictures of a folder (or of one picture), each cut to its middle (--crop).
The output folder gets a picture of it, and as JSON the radii that hold 50, 90 and 99 % of it.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from concertormer_jax.analysis.attribution import influence_on_middle, radius_holding
from concertormer_jax.analysis.reports import receptive_field_picture
from concertormer_jax.analysis.windows import named_pictures, restoring
from concertormer_jax.commands.flags import analysis_parser, parse_arguments, running
from concertormer_jax.data.images import image_size, read_rgb
from concertormer_jax.inference.compiled import CompiledPerShape
from concertormer_jax.runtime.devices import explain_out_of_memory, prepare_to_compile
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text, written_atomically
from concertormer_jax.runtime.outputs import require_outside, require_separate, require_writable, results_path
from concertormer_jax.runtime.paths import local_path
from concertormer_jax.weights.checkpoints import load_model

SHARES = (0.5, 0.9, 0.99)


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = analysis_parser(__doc__, "a picture or a folder of them", least_crop_px=1)
    parser.add_argument("--output", metavar="DIR", help="default: receptive_field/ below --ckpt, or results/")
    flags = parse_arguments(parser, arguments)
    with running():
        pictures = _large_enough(named_pictures(flags.image).values(), flags.crop)
        prepare_to_compile()
        output = results_path(flags.output, flags.ckpt, "receptive_field", Path(flags.image).resolve().stem)
        require_separate([output / "receptive_field.png"], pictures)
        require_outside(output, local_path(flags.image, "IMAGE"))
        model = load_model(flags.ckpt, "--ckpt")
        require_writable(output)
        field = _mean_field(restoring(model), pictures, flags.crop)
        radii = {f"{share:.0%}": radius_holding(field, share) for share in SHARES}
        share_of_middle = float(field[flags.crop // 2, flags.crop // 2] / field.sum())
        with written_atomically(output / "receptive_field.png") as temporary:
            receptive_field_picture(field, radii).save(temporary, format="PNG")
        content = {
            "checkpoint": model.name,
            "images": len(pictures),
            "crop_px": flags.crop,
            "radius_px": radii,
            "share_of_the_middle_pixel": share_of_middle,
        }
        write_text(output / "receptive_field.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        held = ", ".join(f"{share} within {radius:.1f}" for share, radius in radii.items())
        print(
            f"{model.name}: of the receptive field lie {held} pixels; the middle pixel alone has {share_of_middle:.1%}"
        )
        print(f"the picture and the numbers are in {output}")


def _large_enough(paths: Iterable[Path], crop: int) -> list[Path]:
    """Return the pictures. Raises UserError naming the first whose shorter side is less than `crop` pixels."""
    paths = list(paths)
    for path in paths:
        height, width = image_size(path)
        if min(height, width) < crop:
            raise UserError(f"{path}: has {width}x{height} pixels; give a smaller --crop than {crop}, or leave it out.")
    return paths


def _mean_field(restore: Partial, pictures: list[Path], crop: int) -> np.ndarray:
    """The mean of `influence_on_middle` over the middle crops of the pictures: float64 [crop, crop]."""
    influence = CompiledPerShape(influence_on_middle, tqdm.write)
    total = np.zeros((crop, crop))
    with explain_out_of_memory("give a smaller --crop."):
        for path in tqdm(pictures, unit="picture", leave=False):
            picture = read_rgb(path)
            top, left = ((length - crop) // 2 for length in picture.shape[:2])
            cut = picture[top : top + crop, left : left + crop].astype(np.float32) / 255
            total += jax.device_get(influence(restore, cut[None]))[0]
    if not np.isfinite(total).all():
        raise UserError("--ckpt: the network's gradients are not finite; its weights are damaged or diverged.")
    return total / len(pictures)
