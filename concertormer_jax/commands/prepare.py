"""Prepare a data set for training and evaluation from the files that its author publishes, or a usual re-pack of them.

python -m concertormer_jax prepare NAME --source=DIR [--data-dir=DIR] [--dry-run]

NAME is one of gopro, hide, realblur_r, realblur_j, rsblur, rain13k, reds, reds_blur, sidd, or pairs for input/ and
target/ of your own; some have configurations, such as gopro/blur_gamma, and pairs/ANYTHING names yours. The command
recognises the layout below --source. It decodes every file and compares it with its partner before it writes anything.
After an interruption, give the same command again.
"""

import os
import shlex
from collections.abc import Iterable, Iterator

from concertormer_jax.commands.flags import make_parser, parse_arguments, running
from concertormer_jax.data.prepared import default_data_dir
from concertormer_jax.datasets.descriptions import SETS
from concertormer_jax.datasets.layouts import Found
from concertormer_jax.datasets.preparation import described, examine, prepare, require_preparable
from concertormer_jax.datasets.verify import Report, SplitReport
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.paths import local_path

_SHOWN = 20  # errors, and as many warnings
_RECIPES = {"rain13k": "derain", "pairs": "custom"}  # the other recipes have the name of their set


def report_lines(found: Found, report: Report) -> Iterator[str]:
    """Yield lines on the splits, the warnings and the errors of a check."""
    for split, part in report.splits.items():
        yield f"  {split}: {_split_text(part, found.places[split])}"
    for kind, messages in (("warning", report.warnings), ("error", report.errors)):
        for message in messages[:_SHOWN]:
            yield f"{kind}: {message}"
        if len(messages) > _SHOWN:
            yield f"{kind}: ... and {len(messages) - _SHOWN} more"


def _split_text(part: SplitReport, place: str) -> str:
    sizes = [f"{width}x{height}" for (height, width), _ in part.sizes.most_common(2)]
    more = len(part.sizes) - len(sizes)
    text = f"{len(part.items):,} pairs, {part.sequences:,} sequences, {_size_text(part.bytes)}, "
    text += " and ".join(sizes) + (f" and {more} more sizes" if more > 0 else "") + f", in {place}"
    if part.pairing is not None and part.pairing.usual is not None:
        text += "; PSNR of partners {:.1f} dB, of strangers {:.1f} dB".format(*part.pairing.usual)
    return text


def _size_text(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def steps_text() -> str:
    """Return how to get each set, for --help."""
    lines = ["How to get the sets:"]
    for description in SETS.values():
        names = [f"{description.name}/{variant.name}" for variant in description.variants if variant.name]
        lines.append(f"\n{description.title} ({', '.join(names) or description.name}); {description.licence}")
        lines += [f"  {number}. {step}" for number, step in enumerate(description.steps, 1)]
    return "\n".join(lines)


def next_command(reference: str, report: Report, data_dir: str) -> str:
    """Return a command that uses the prepared set, from any folder, as a shell takes it."""
    name = reference.partition("/")[0]
    elsewhere = data_dir not in ("", default_data_dir())
    command = ["python", "-m", "concertormer_jax"]
    if "train" not in report.splits:
        command += ["evaluate", "--ckpt=runs/gopro", f"--data=tfds:{reference}"]
        command += [f"--data-dir={data_dir}"] if elsewhere else []
        return shlex.join(command)
    recipe = _RECIPES.get(name, name)
    command += ["train", f"--config={recipe}", f"--workdir=runs/{recipe}"]
    if name.startswith("realblur"):
        command.append("--config.init_from=runs/gopro")
    if reference != name or recipe == "custom":
        command.append(f"--config.data.source=tfds:{reference}")
    return shlex.join(command + ([f"--config.data.data_dir={data_dir}"] if elsewhere else []))


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__, epilog=steps_text())
    parser.add_argument("name", metavar="NAME", help="the set, or NAME/CONFIG")
    parser.add_argument("--source", required=True, metavar="DIR", help="folder that holds the set")
    parser.add_argument(
        "--data-dir", default="", metavar="DIR", help="where prepared sets go; default: ~/tensorflow_datasets"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and report, write nothing")
    flags = parse_arguments(parser, arguments)
    with running():
        description, variant = described(flags.name)
        source = local_path(flags.source, "--source")
        if not flags.dry_run:
            require_preparable(flags.name, flags.data_dir)
        found, report = examine(flags.name, source)
        print(f"{description.title}: {variant.text}")
        for line in report_lines(found, report):
            print(printable(line))
        if report.errors:
            raise UserError(
                f"{flags.source}: has {len(report.errors)} errors and nothing was written; mend the files named above."
            )
        if flags.dry_run:
            print("nothing was written (--dry-run)")
            return
        folder = prepare(flags.name, report, flags.data_dir)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"prepared {os.fspath(folder)}, {_size_text(size)}")
        print(f"next: {next_command(flags.name, report, flags.data_dir)}")
