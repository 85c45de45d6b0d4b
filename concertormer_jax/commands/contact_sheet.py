"""Make a sheet that shows every synthetic degradation on one photograph.

python -m concertormer_jax contact_sheet PHOTO OUT.jpg [--seed=0]
"""

from collections.abc import Iterable

from concertormer_jax.commands.flags import make_parser, parse_arguments, running, whole
from concertormer_jax.data.images import read_rgb
from concertormer_jax.photos.sheets import SHOWN, contact_sheet
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import require_file_writable, require_separate
from concertormer_jax.runtime.paths import local_path


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    parser.add_argument("photo", metavar="PHOTO", help="a sharp photograph")
    parser.add_argument("out", metavar="OUT", help="the sheet: .jpg or .png")
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="another seed draws other paths and drops (default: 0)"
    )
    flags = parse_arguments(parser, arguments)
    with running():
        path, out = local_path(flags.photo, "PHOTO"), local_path(flags.out, "OUT")
        if out.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            raise UserError(f"{out}: must end in .jpg or .png.")
        require_separate([out], [path])
        require_file_writable(out)
        photo = read_rgb(path)
        try:
            sheet = contact_sheet(photo, flags.seed)
        except ValueError as error:
            raise UserError(f"{path}: {error}; give a larger one.") from error
        with written_atomically(out) as temporary:
            sheet.save(temporary, quality=90)
        print(f"{len(SHOWN)} pictures in {out}")
