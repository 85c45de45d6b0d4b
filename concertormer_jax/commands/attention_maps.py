"""Draw the attention maps of a block: `concertormer attention_maps --ckpt=DIR IMAGE --stage=encoders_0 --block=1`.

Writes a picture with the maps of every group of heads, before and after their cross-dimensional communication (CDC),
for the middle (--crop) of IMAGE.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from concertormer_jax.analysis.attention_maps import attention_maps, attention_sheet
from concertormer_jax.analysis.windows import cut_around, middle_window
from concertormer_jax.commands.flags import analysis_parser, parse_arguments, running, whole
from concertormer_jax.data.images import read_rgb
from concertormer_jax.runtime.devices import explain_out_of_memory, prepare_to_compile
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import require_separate, require_writable, results_path
from concertormer_jax.runtime.paths import local_path
from concertormer_jax.weights.checkpoints import load_model


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = analysis_parser(__doc__, "a picture", least_crop_px=0)
    parser.add_argument("--stage", default="encoders_0", metavar="NAME", help="default: encoders_0, the first")
    parser.add_argument(
        "--block", type=whole(1, 1000), default=1, metavar="N", help="of the stage; default: 1, the first"
    )
    parser.add_argument("--output", metavar="FILE.png", help="default: in attention_maps/ below --ckpt, or results/")
    flags = parse_arguments(parser, arguments)
    with running():
        name = f"{Path(flags.image).stem}_{flags.stage}_{flags.block}.png"
        output = results_path(flags.output, flags.ckpt, "attention_maps", name)
        if output.suffix.lower() != ".png":
            raise UserError(f"--output={flags.output}: must end in .png.")
        if output.is_dir():
            raise UserError(f"--output={output}: is a folder; name a file for the result.")
        image_path = local_path(flags.image, "IMAGE")
        require_separate([output], [image_path])
        picture = read_rgb(image_path)
        cut, _ = cut_around(picture, middle_window(*picture.shape[:2], 1), flags.crop)
        prepare_to_compile()
        model = load_model(flags.ckpt, "--ckpt")
        require_writable(output.parent)
        with explain_out_of_memory("give a smaller --crop."):
            image = cut.astype(np.float32) / 255
            maps = attention_maps(model.module, model.params, image, flags.stage, flags.block - 1)
        with written_atomically(output) as temporary:
            attention_sheet(maps, *cut.shape[:2], model.module.multiple).save(temporary, format="PNG")
        print(f"the attention maps of block {flags.block} of {flags.stage} are in {output}")
