"""Count the parameters and multiply-accumulates (MACs) of a network by part and by stage.

    python -m concertormer_jax summary gopro --size=256
    python -m concertormer_jax summary spatial_csa --size=1280x720 --chart=cost.png
    python -m concertormer_jax summary full --json

MACs are counted in three ways. `all` has every convolution and matrix product (models/costs.py). `paper` is the counter
behind the paper's tables, which leaves out the two products of the Concertino's CDC, and adds biases and means. `XLA`
is half the floating-point operations that XLA counts, which include sums, norms and softmax.
"""

import json
import re
from collections.abc import Iterable

import jax

from concertormer_jax.commands.flags import make_parser, parse_arguments, running
from concertormer_jax.models import ABLATIONS, VARIANTS
from concertormer_jax.planning.summary import SIDE_PX, draw, summarise
from concertormer_jax.runtime import outputs
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import local_path


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    height = height if cross else width
    if not all(re.fullmatch("[0-9]{1,5}", side) and int(side) in SIDE_PX for side in (width, height)):
        raise UserError(f"--size={text}: must be a side or WIDTHxHEIGHT, each {SIDE_PX} pixels, such as 1280x720")
    return int(width), int(height)


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    parser.add_argument("variant", metavar="VARIANT", help=", ".join([*VARIANTS, *ABLATIONS]))
    parser.add_argument("--size", default="256", help="of the picture in pixels: a side or WIDTHxHEIGHT")
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    parser.add_argument("--chart", metavar="FILE.png", help="write a bar chart (needs matplotlib)")
    flags = parse_arguments(parser, arguments)
    with running():
        chart = None if flags.chart is None else local_path(flags.chart, "--chart")
        if chart:
            outputs.require_drawable("--chart", chart)
        jax.config.update("jax_platforms", "cpu")  # so that every machine gives the same numbers
        summary = summarise(flags.variant, *_size(flags.size))
        print(json.dumps(summary.as_json(), indent=2) if flags.json else summary)
        if chart:
            draw(summary, chart)
