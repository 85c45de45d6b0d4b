"""Restore and score a folder of pairs: `python evaluate.py --ckpt=DIR [--data=FOLDER] [--tlc=auto|off|N]`.

FOLDER holds input/ and target/. The output folder gets the restored pictures (restored/), the scores (per_image.csv,
results.json, results.md) and a sheet of the ten pictures with the lowest PSNR (worst_ten.png).
"""

import argparse
from pathlib import Path

import absl.logging

from concertormer_jax.checkpoints import load_model
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.devices import use_compilation_cache
from concertormer_jax.errors import reported
from concertormer_jax.evaluation.evaluator import DEFAULT_METRICS, evaluate
from concertormer_jax.evaluation.outputs import require_writable
from concertormer_jax.evaluation.reports import markdown_table, write_reports
from concertormer_jax.metrics import METRICS

BUNDLED_PHOTOS = Path(__file__).parent / "photos" / "test"


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="training folder, checkpoint or converted weights")
    parser.add_argument("--data", metavar="FOLDER", help="default: the bundled test photographs, blurred into pairs/")
    parser.add_argument(
        "--output", metavar="DIR", help="default: evaluation/ in the checkpoint's folder, by data and TLC"
    )
    parser.add_argument("--tlc", default="auto", metavar="auto|off|N", help="window of the test-time local converter")
    parser.add_argument("--metrics", default=",".join(DEFAULT_METRICS), help=f"any of {', '.join(METRICS)}")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images per step over all devices; default: one for each"
    )
    flags = parser.parse_args(arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells of every file otherwise
    with reported():
        use_compilation_cache()
        model = load_model(flags.ckpt)
        data_name = "-".join(Path(flags.data or BUNDLED_PHOTOS).resolve().parts[-2:])
        output = Path(flags.output or Path(flags.ckpt, "evaluation", f"{data_name}-tlc-{flags.tlc}"))
        data = flags.data
        if data is None:
            data = output / "pairs"
            require_writable(output)
            synthesize(BUNDLED_PHOTOS, data)
        metrics = [name for name in flags.metrics.split(",") if name]
        evaluation = evaluate(model, data, output, tlc=flags.tlc, metrics=metrics, batch=flags.batch)
        write_reports(evaluation, output)
        print(markdown_table([evaluation]))
        print(f"{len(evaluation.images)} images in {evaluation.seconds:.0f} s; pictures and tables are in {output}")


if __name__ == "__main__":
    main()
