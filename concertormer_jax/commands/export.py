"""Export a network for other software: `concertormer export --size=WIDTHxHEIGHT OUT`.

OUT.stablehlo is one file for CPUs, GPUs and TPUs and for any batch, which `jax.export.deserialize` reads; OUT.onnx (the
extra `onnx`) and OUT.tflite, for LiteRT, are for one picture. All take and give float32 [B, H, W, 3] in [0, 1] of one
size, whose sides must be multiples of the network's. OUT.onnx.json beside OUT.onnx (and so on) says all that: names,
shapes, ranges, padding, TLC, weights.
--half stores the weights as float16, in half the bytes; what is computed with them stays float32.
--page writes OUT.html too, which restores photographs in a browser by OUT.onnx and the npm package onnxruntime-web.
"""

import argparse
import json
import re
from collections.abc import Iterable

from concertormer_jax.commands.flags import add_ckpt, make_parser, parse_arguments, running
from concertormer_jax.exporting.onnx_file import onnx_file
from concertormer_jax.exporting.program import Program, require_fitting
from concertormer_jax.exporting.stablehlo import stablehlo
from concertormer_jax.exporting.tflite import tflite
from concertormer_jax.inference.tiles import LARGEST_PX, tlc_window
from concertormer_jax.pages.onnx_page import write_onnx_page
from concertormer_jax.runtime.devices import prepare_to_compile
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text, written_atomically
from concertormer_jax.runtime.outputs import require_file_writable
from concertormer_jax.runtime.paths import local_path
from concertormer_jax.weights.checkpoints import load_model

_WRITERS = {".stablehlo": stablehlo, ".onnx": onnx_file, ".tflite": tflite}


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    add_ckpt(parser)
    parser.add_argument("output", metavar="OUT", help=f"the file, which ends in one of {', '.join(_WRITERS)}")
    parser.add_argument("--size", type=_size, required=True, metavar="WIDTHxHEIGHT", help="of the pictures, in pixels")
    parser.add_argument(
        "--tlc", default="off", metavar="off|auto|N", help="window of the test-time local converter; default: off"
    )
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument("--page", action="store_true", help="also write a page for a browser that runs OUT.onnx")
    flags = parse_arguments(parser, arguments)
    with running():
        output = local_path(flags.output, "OUT")
        write = _WRITERS.get(output.suffix.lower())
        if write is None:
            raise UserError(f"{output}: must end in one of {', '.join(_WRITERS)}")
        if flags.page and write is not onnx_file:
            raise UserError("--page: browsers run ONNX files alone; name an OUT.onnx, or leave --page out")
        page = output.with_suffix(".html")
        for path in (output, page) if flags.page else (output,):
            require_file_writable(path)
        prepare_to_compile()
        model = load_model(flags.ckpt, "--ckpt")
        width, height = flags.size
        require_fitting(width, height, model.module.multiple)
        window = tlc_window(flags.tlc, model.train_crop_px, model.module.multiple)
        content, manifest = write(Program(model, height, width, window, flags.half))
        with written_atomically(output) as temporary:
            temporary.write_bytes(content)
        beside = output.with_name(f"{output.name}.json")
        write_text(beside, json.dumps(manifest, indent=2) + "\n")
        if flags.page:
            write_onnx_page(page, output, manifest)
            print(f"{page}: to be served beside it and the files of onnxruntime-web; see the README")
        print(f"{output}: {len(content) / 1e6:.1f} MB; {beside.name} describes it")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,7})x(\d{1,7})", text)
    width, height = map(int, found.groups()) if found else (0, 0)
    if not (0 < height <= LARGEST_PX and 0 < width <= LARGEST_PX):
        raise argparse.ArgumentTypeError(f"{text!r} must be WIDTHxHEIGHT in pixels, such as 1280x720")
    return width, height
