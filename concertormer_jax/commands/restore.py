"""Restore photographs: `python -m concertormer_jax restore IN OUT`, for one picture or a folder of them.

A video, or a GIF with OUT a GIF or a video, is restored frame by frame.
"""

import sys
from collections.abc import Iterable

from concertormer_jax.commands.flags import add_ckpt, make_parser, parse_arguments, running
from concertormer_jax.data.images import READABLE
from concertormer_jax.inference.compiled import PRECISION_HELP, PRECISIONS
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.inference.sharding import SETTINGS, SHARD_HELP
from concertormer_jax.pages.comparison import PAGE_PICTURES, Compared, write_comparison
from concertormer_jax.photos.photo_io import read_photo
from concertormer_jax.photos.restoring import Outcome, Plan, as_bytes, plan, restore_files
from concertormer_jax.photos.video import is_video, plan_video, restore_video
from concertormer_jax.runtime.devices import prepare_to_compile
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.weights.checkpoints import load_model

_MOST_NAMED = 50  # files that are left out are named up to this number


def _write_page(work, outcome):
    done = [job for job in work.jobs if job.after in set(outcome.restored)]
    shown = done[:PAGE_PICTURES]
    note = f"the first {len(shown)} of {len(done)} pictures" if len(done) > len(shown) else ""
    pictures = (
        Compared(printable(job.before.name), as_bytes(read_photo(job.before).rgb), as_bytes(read_photo(job.after).rgb))
        for job in shown
    )
    write_comparison(work.page, "Before and after", pictures, note=note)
    print(printable(f"{work.page}: before and after under a slider; it opens in any browser"))


def _closing_lines(work: Plan, outcome: Outcome) -> list[str]:
    """What to say at the end: what of the folder was left out, and every picture that failed."""
    lines = []
    if work.left_out:
        names = ", ".join(str(path) for path in work.left_out[:_MOST_NAMED])
        more = f" and {len(work.left_out) - _MOST_NAMED} more" if len(work.left_out) > _MOST_NAMED else ""
        lines.append(f"left out {len(work.left_out)} files whose names are not those of pictures: {names}{more}")
    if work.hidden:
        lines.append(f"left out {work.hidden} hidden files")
    if work.deeper:
        lines.append(f"left out {work.deeper} pictures in subfolders; --recursive takes them too")
    if outcome.failed:
        lines.append(f"error: {len(outcome.failed)} of {len(work.jobs)} pictures could not be restored:")
        lines += [f"  {reason}" for reason in outcome.failed.values()]
    return lines


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    add_ckpt(parser)
    parser.add_argument("input", metavar="IN", help=f"a picture ({READABLE}), a folder of them, or a video")
    parser.add_argument("output", metavar="OUT", help="the result's name, whose suffix decides its format, or a folder")
    parser.add_argument(
        "--tile", default="auto", metavar="PIXELS", help="tile size, a multiple of 64; auto; off for none"
    )
    parser.add_argument("--tlc", default="auto", metavar="auto|off|N", help="window of the test-time local converter")
    parser.add_argument("--recursive", action="store_true", help="of a folder, also the pictures in its subfolders")
    parser.add_argument("--compare", action="store_true", help="also write before and after, as pictures and as a page")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help=PRECISION_HELP)
    parser.add_argument("--shard", choices=SETTINGS, default=SETTINGS[0], help=SHARD_HELP)
    flags = parse_arguments(parser, arguments)
    with running():
        prepare_to_compile()
        if is_video(flags.input, flags.output):
            _restore_video(flags)
        else:
            _restore_pictures(flags)


def _restore_video(flags):
    if flags.compare or flags.recursive:
        raise UserError("--compare and --recursive are for pictures; leave them out with a video.")
    before, after = plan_video(flags.input, flags.output)
    restore_video(_restorer(flags), before, after)


def _restore_pictures(flags):
    work = plan(flags.input, flags.output, compare=flags.compare, recursive=flags.recursive)
    outcome = restore_files(_restorer(flags), work)
    if work.page and outcome.restored:
        _write_page(work, outcome)
    for line in _closing_lines(work, outcome):
        print(printable(line), file=sys.stderr)
    if outcome.failed:
        raise SystemExit(1)


def _restorer(flags):
    """Load the checkpoint, which takes a while, so that a wrong path of a picture is found before."""
    model = load_model(flags.ckpt, "--ckpt")
    return Restorer(model, tlc=flags.tlc, tile=flags.tile, precision=flags.precision, shard=flags.shard)
