"""Show which pixels a result depends on: `concertormer attribution --ckpt=DIR IMAGE [--window=x,y,size]`.

Local attribution maps (Gu and Dong, CVPR 2021) say which pixels of a picture contribute to the restoration of a window
in it, and the diffusion index says how widely these are spread. IMAGE is a picture, or a folder for a table with the
mean. The network gets a square cut out around the window (--crop), since the index depends on the size of the picture.
The output folder gets a sheet for every picture, results.json and results.md.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from concertormer_jax.analysis.attribution import KERNEL, SIGMA, STEPS, WINDOW, PathIntegral
from concertormer_jax.analysis.reports import Row, attribution_sheet, markdown_table, results_json, warnings
from concertormer_jax.analysis.windows import Window, cut_around, middle_window, named_pictures, parse_window, restoring
from concertormer_jax.commands.flags import analysis_parser, number, parse_arguments, running, whole
from concertormer_jax.data.images import image_size, read_rgb
from concertormer_jax.runtime.devices import explain_out_of_memory, prepare_to_compile
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.files import write_text, written_atomically
from concertormer_jax.runtime.outputs import require_outside, require_separate, require_writable, results_path
from concertormer_jax.runtime.paths import local_path
from concertormer_jax.weights.checkpoints import LoadedModel, load_model


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = analysis_parser(__doc__, "a picture or a folder of them", least_crop_px=0)
    parser.add_argument(
        "--window",
        metavar="x,y,size",
        help="the window whose restoration is attributed: column and row of its corner, and side, in pixels; default: "
        f"{WINDOW} pixels in the middle",
    )
    parser.add_argument(
        "--sigma",
        type=number(0.01, 1000),
        default=SIGMA,
        metavar="PIXELS",
        help=f"blur where the path starts; default: {SIGMA}",
    )
    parser.add_argument(
        "--steps", type=whole(1, 10**6), default=STEPS, metavar="N", help=f"steps of the path; default: {STEPS}"
    )
    parser.add_argument(
        "--kernel",
        type=whole(3, 255),
        default=KERNEL,
        metavar="PIXELS",
        help=f"side of the blur's kernel; default: {KERNEL}",
    )
    parser.add_argument(
        "--batch", type=whole(1, 65536), default=4, metavar="N", help="steps computed at once; default: 4"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="default: attribution/ below --ckpt, or results/, by the picture's name"
    )
    flags = parse_arguments(parser, arguments)
    with running():
        if flags.kernel % 2 == 0:
            raise UserError(f"--kernel={flags.kernel}: must be an odd number of pixels.")
        prepare_to_compile()
        output = results_path(flags.output, flags.ckpt, "attribution", Path(flags.image).resolve().stem)
        pictures = _windows(flags)
        require_separate([output / f"{name}.png" for name in pictures], [path for path, _ in pictures.values()])
        require_outside(output, local_path(flags.image, "IMAGE"))
        model = load_model(flags.ckpt, "--ckpt")
        require_writable(output)
        rows = _attribute(flags, model, pictures, output)
        settings = {key: getattr(flags, key) for key in ("sigma", "steps", "kernel", "crop")}
        write_text(output / "results.json", results_json(model.name, settings, rows))
        write_text(output / "results.md", markdown_table(model.name, rows))
        print(markdown_table(model.name, rows))
        for sentence in warnings(rows):
            print(printable(f"note: {sentence}"))
        print(f"pictures and tables are in {output}")


def _windows(flags: Namespace) -> dict[str, tuple[Path, Window]]:
    """Every picture with its window, by name. Raises UserError for a window that does not fit."""
    window = parse_window(flags.window) if flags.window else None
    side = window.size if window else WINDOW
    if 0 < flags.crop < side:
        raise UserError(f"--crop={flags.crop}: is smaller than the window of {side} pixels; give a larger one.")
    pictures = {}
    for name, path in named_pictures(flags.image).items():
        height, width = image_size(path)
        chosen = window or middle_window(height, width, WINDOW)
        chosen.require_within(height, width, path)
        pictures[name] = path, chosen
    return pictures


def _attribute(
    flags: Namespace, model: LoadedModel, pictures: dict[str, tuple[Path, Window]], output: Path
) -> list[Row]:
    """Attribute every picture, write its sheet into `output`, and return its row of the table."""
    integral = PathIntegral(
        restoring(model), sigma=flags.sigma, steps=flags.steps, kernel=flags.kernel, batch=flags.batch, log=tqdm.write
    )
    rows = []
    with (
        explain_out_of_memory("give a smaller --batch or --crop."),
        tqdm(total=integral.parts * len(pictures), unit="batch", leave=False) as bar,
    ):
        for name, (path, window) in pictures.items():
            bar.set_description(printable(name))
            cut, inside = cut_around(read_rgb(path), window, flags.crop)
            if np.ptp(cut) == 0:
                raise UserError(f"{path}: is of one colour, so that nothing contributes; choose another picture.")
            attribution = integral(cut.astype(np.float32) / 255, inside, bar.update)
            if not np.isfinite(attribution.contributions).all():
                raise UserError("--ckpt: the network's gradients are not finite; its weights are damaged or diverged.")
            if not (attribution.contributions.any() and attribution.change):
                raise UserError(f"{path}: the window {window.text} shows no edge; give another --window.")
            with written_atomically(output / f"{name}.png") as temporary:
                attribution_sheet(cut, attribution.strength, inside).save(temporary, format="PNG")
            index, completeness = attribution.diffusion_index, attribution.completeness
            rows.append(Row(path.name, *cut.shape[:2], window.text, index, completeness))
    return rows
