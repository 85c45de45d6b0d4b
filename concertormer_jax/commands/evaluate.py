"""Restore and score the pictures of a benchmark or a folder: `python evaluate.py [--ckpt=DIR] [--data=DATA]`.

DATA is a prepared set (tfds:NAME), a folder of one of the known sets in any of its layouts, any folder with input/ and
target/, or, for protocols such as denoise_25, a folder of clean pictures. The output folder gets the restored pictures
(restored/), the scores (per_image.csv, results.json, results.md), a sheet of the ten pictures with the lowest PSNR
(worst_ten.png) and a page with before and after under a slider (comparison.html); of several sets, each gets a folder.

On several hosts, run one process on each with the same command and --distributed; the output folder must be one that
all of them see. Every process restores and scores its share of the pictures, and the first writes the tables.

`python evaluate.py --predictions=DIR --data=DATA` scores pictures that other software restored, by the same protocol.
"""

from collections.abc import Iterable
from pathlib import Path

from concertormer_jax.commands.flags import add_ckpt, make_parser, parse_arguments, running, whole
from concertormer_jax.data.prepared import PREFIX
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.evaluation.evaluator import evaluate, evaluate_predictions
from concertormer_jax.evaluation.reports import markdown_table, write_reports, write_summary
from concertormer_jax.evaluation.scores import PROTOCOLS, protocol_named
from concertormer_jax.evaluation.sets import find_predictions, open_sets, predictions_folder
from concertormer_jax.inference.compiled import PRECISION_HELP, PRECISIONS
from concertormer_jax.inference.sharding import SETTINGS, SHARD_HELP
from concertormer_jax.inference.tiles import tlc_window
from concertormer_jax.metrics.psnr_ssim import METRICS, require_known
from concertormer_jax.runtime.devices import Hosts, join_hosts, prepare_to_compile
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import require_outside, require_writable, results_path
from concertormer_jax.runtime.paths import bundled, is_bundled, local_path
from concertormer_jax.weights.checkpoints import load_model

BUNDLED_PHOTOS = bundled("photos/test")


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    add_ckpt(parser)
    parser.add_argument("--predictions", metavar="DIR", help="pictures to score in place of a network's, by name")
    parser.add_argument("--data", metavar="DATA", help="default: the bundled test photographs, blurred into pairs/")
    parser.add_argument("--data-dir", default="", metavar="DIR", help="where prepared sets are; default as in prepare")
    parser.add_argument("--protocol", metavar="NAME", help=f"default: the data's; {', '.join(PROTOCOLS)}")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="default: evaluation/ in the checkpoint's folder (or results/), by data, protocol and TLC",
    )
    parser.add_argument(
        "--tlc", metavar="auto|off|N", help="window of the test-time local converter; auto, the default: the protocol's"
    )
    parser.add_argument("--metrics", help=f"default: the protocol's; any of {', '.join(METRICS)}")
    parser.add_argument(
        "--batch", type=whole(1, 65536), metavar="N", help="images per step over all devices; default: one for each"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP)
    parser.add_argument("--shard", choices=SETTINGS, help=SHARD_HELP)
    parser.add_argument("--distributed", action="store_true", help="share the work with the processes of other hosts")
    flags = parse_arguments(parser, arguments)
    with running():
        if flags.predictions and not is_bundled(flags.ckpt):
            raise UserError("give either --ckpt, a network to score, or --predictions, a folder of restored pictures.")
        if flags.data is not None and not flags.data.startswith(PREFIX):
            flags.data = str(local_path(flags.data, "--data"))
        metrics = None
        if flags.metrics:
            metrics = require_known([name for name in flags.metrics.split(",") if name])
        if flags.predictions:
            _predictions(flags, metrics)
        else:
            _network(flags, metrics)


def _network(flags, metrics):
    prepare_to_compile()
    if flags.distributed:
        if flags.data is None:
            raise UserError("--distributed needs --data: a set that all hosts see.")
        join_hosts()
    tlc = flags.tlc or "auto"
    data_name = "-".join(Path(flags.data or BUNDLED_PHOTOS).resolve().parts[-2:])
    if flags.data and flags.data.startswith(PREFIX):
        data_name = flags.data.removeprefix(PREFIX).replace("/", "-")
    if flags.protocol and protocol_named(flags.protocol).degradation:  # other inputs of the same pictures
        data_name += f"-{flags.protocol}"
    output = results_path(flags.output, flags.ckpt, "evaluation", f"{data_name}-tlc-{tlc}")
    with Hosts(output if flags.distributed else None) as hosts:
        model = load_model(flags.ckpt, "--ckpt")
        # A wrong one is refused before anything is written.
        tlc_window(tlc, model.train_crop_px, model.module.multiple)
        data = flags.data
        if data is None:
            data = str(output / "pairs")
            require_writable(output)
            synthesize(BUNDLED_PHOTOS, data)
        protocol, sets = open_sets(data, flags.protocol, flags.data_dir)
        if protocol.degradation:
            require_outside(output, data)

        def score(pairs, folder):
            options = {"tlc": tlc, "metrics": metrics, "batch": flags.batch}
            options |= {"precision": flags.precision or "highest", "shard": flags.shard or "auto"}
            return evaluate(model, pairs, folder, protocol=protocol, **options, hosts=hosts)

        _score_sets(score, sets, output, report=hosts.first)


def _predictions(flags, metrics):
    if not flags.data:
        raise UserError("--predictions needs --data: the set whose inputs were restored.")
    if flags.tlc or flags.batch or flags.precision or flags.shard or flags.distributed:
        raise UserError(
            "--tlc, --batch, --precision, --shard and --distributed are for a network; leave them out with "
            "--predictions."
        )
    predictions = local_path(flags.predictions, "--predictions")
    protocol, sets = open_sets(flags.data, flags.protocol, flags.data_dir)
    output = local_path(flags.output or f"{predictions}-scores", "--output")
    if protocol.degradation:
        require_outside(output, flags.data)
    paths = {  # of all sets, before the first is scored
        pairs.name: find_predictions(predictions_folder(predictions, pairs, len(sets) == 1), pairs) for pairs in sets
    }

    def score(pairs, folder):
        maker = f"pictures in {flags.predictions}"
        return evaluate_predictions(paths[pairs.name], pairs, folder, protocol=protocol, metrics=metrics, maker=maker)

    _score_sets(score, sets, output, report=True)


def _score_sets(score, sets, output, *, report):
    """Score every set. report: also write the reports, of several sets into folders with a summary, and print them."""
    evaluations = []
    for pairs in sets:
        folder = output if len(sets) == 1 else output / pairs.name
        evaluations.append(score(pairs, folder))
        if report:
            write_reports(evaluations[-1], folder)
    if not report:
        return
    if len(sets) > 1:
        write_summary(evaluations, output)
    print(markdown_table(evaluations))
    protocol = PROTOCOLS[evaluations[0].protocol]
    if missing := protocol.missing(evaluations):
        print(f"no average over {', '.join(protocol.averaged)}: {', '.join(missing)} not evaluated")
    images, seconds = sum(len(one.images) for one in evaluations), sum(one.seconds for one in evaluations)
    print(f"{images} images in {seconds:.0f} s; pictures and tables are in {output}")
