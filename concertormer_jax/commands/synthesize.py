"""Make evaluation pairs from a folder of sharp photographs, the same bytes every time.

python -m concertormer_jax synthesize PHOTOS OUT [--degradation=shake] [--seed=0]
"""

from concertormer_jax.commands.flags import make_parser, parse_arguments, running, whole
from concertormer_jax.data.degrade import DEGRADATIONS
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.runtime.paths import local_path


def main() -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="folder of sharp photographs")
    parser.add_argument("out", metavar="OUT", help="folder for input/ and target/")
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="another seed draws other blur or rain (default: 0)"
    )
    known = ", ".join(DEGRADATIONS)
    parser.add_argument("--degradation", default="shake", metavar="NAME", help=f"one of {known} (default: shake)")
    arguments = parse_arguments(parser)
    with running():
        photos, out = local_path(arguments.photos, "PHOTOS"), local_path(arguments.out, "OUT")
        count = synthesize(photos, out, arguments.seed, arguments.degradation)
        print(f"{count} pairs in {out}")
