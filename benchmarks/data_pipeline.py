"""How many training images per second the data pipeline delivers, and how many cores an accelerator needs for that.

    python -m benchmarks.data_pipeline --torch-python=PEER_ENV/bin/python --consumer-images-per-second=400

Random crops of 256 pixels, mirrored and turned, in batches of 32, from 1280x720 pairs in PNG files and from decoded
pictures in memory; against a PyTorch DataLoader that does the same. The pairs are made from the bundled photographs.
Processor time counts all threads and processes of the reader, so `images per core second` is what one busy core
delivers, and cores = --consumer-images-per-second / images per core second. Writes data.json and data.md to --output.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from benchmarks import report
from benchmarks.machine import processor
from benchmarks.report import OURS
from benchmarks.sides import ROOT, Side
from concertormer_jax.data.images import list_images, read_rgb, write_png
from concertormer_jax.runtime import errors, files
from concertormer_jax.runtime.errors import UserError

FRAME = (1280, 720)  # GoPro's width and height
CROP_PX, BATCH = 256, 32
NOISE = 2.0  # standard deviation of a camera's noise in 8-bit values: what makes real frames hard to compress
REPETITION_S = 3.0


def make_pairs(folder: Path, count: int) -> None:
    """Write `count` pairs of FRAME's size to `folder`/input and `folder`/target."""
    rng = np.random.default_rng(0)
    photos = list_images(ROOT / "photos" / "train")
    for number in tqdm(range(count), desc="writing pairs", unit="pair", leave=False):
        photo = Image.fromarray(read_rgb(photos[number % len(photos)])).resize(FRAME, Image.Resampling.LANCZOS)
        for part, image in (("input", photo.filter(ImageFilter.BoxBlur(4))), ("target", photo)):
            noisy = np.asarray(image) + rng.normal(scale=NOISE, size=(FRAME[1], FRAME[0], 3))
            write_png(folder / part / f"{number:04d}.png", np.clip(np.round(noisy), 0, 255).astype(np.uint8))


def measure(side: Side, repetitions: int) -> dict:
    """Seconds of a batch for each repetition, and the processor time of a batch."""
    calls = max(1, round(REPETITION_S / side.seconds(2)))
    before = side.describe()["cpu_s"]
    seconds = [side.seconds(calls) for _ in range(repetitions)]
    return {"seconds": seconds, "cpu_s": (side.describe()["cpu_s"] - before) / (calls * repetitions)}


def cores_needed(consumer_images_per_s: float, images_per_core_s: float) -> float:
    """Cores that are busy with reading while an accelerator takes in `consumer_images_per_s`."""
    return consumer_images_per_s / images_per_core_s


def table(records: list[dict], consumer_images_per_s: float | None) -> str:
    """The Markdown table of `records`: {"storage", "reader", "seconds", "cpu_s"}, the last two of a batch."""
    header = ["reader", "images/s", "least to greatest", "images per core second"]
    if consumer_images_per_s:
        header.append(f"cores for {consumer_images_per_s:g} images/s")
    rows = []
    for record in records:
        rates = report.spread([BATCH / seconds for seconds in record["seconds"]])
        per_core = BATCH / record["cpu_s"]
        row = [
            f"{record['storage']}, {record['reader']}",
            f"{rates.median:.0f}",
            f"{rates.low:.0f} to {rates.high:.0f}",
        ]
        row.append(f"{per_core:.0f}")
        if consumer_images_per_s:
            row.append(f"{cores_needed(consumer_images_per_s, per_core):.2f}")
        rows.append(row)
    return report.markdown_table(header, rows)


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--torch-python", default=sys.executable, help="Python that has PyTorch (default: this one)")
    parser.add_argument("--consumer-images-per-second", type=float, help="what a training step takes in: see the race")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of pictures to read from")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/data_pipeline"), help="folder for the results")
    flags = parser.parse_args(arguments)
    with errors.reported(), tempfile.TemporaryDirectory(prefix="pairs-") as folder:
        for name in ("pairs", "repetitions", "consumer_images_per_second"):
            value = getattr(flags, name)
            if value is not None and value <= 0:
                raise UserError(f"--{name.replace('_', '-')}={value}: must be positive.")
        make_pairs(Path(folder), flags.pairs)
        records = []
        sides = [(OURS, sys.executable, "benchmarks.jax_batches", {})]
        sides += [
            (f"DataLoader, {workers} workers", flags.torch_python, "benchmarks.torch_batches", {"workers": workers})
            for workers in range(min(2, len(os.sched_getaffinity(0))) + 1)
        ]
        bar = tqdm(total=2 * len(sides), unit="reader", leave=False)
        for storage, cached in (("PNG files", False), ("RAM cache", True)):
            for reader, python, module, extra in sides:
                bar.set_description(f"{storage}, {reader}")
                job = {"folder": folder, "cached": cached, "crop_px": CROP_PX, "batch": BATCH} | extra
                with Side(reader, python, module, job, {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}) as side:
                    records.append({"storage": storage, "reader": reader} | measure(side, flags.repetitions))
                bar.update()
        bar.close()
        rate = flags.consumer_images_per_second
        record = {"date": datetime.date.today().isoformat(), "processor": processor(), "readers": records}
        files.write_text(flags.output / "data.json", json.dumps(record, indent=2) + "\n")
        page = f"{record['date']}; {record['processor']}, {len(os.sched_getaffinity(0))} cores. Crops of {CROP_PX}, "
        page += f"batches of {BATCH}, from {flags.pairs} pairs of {FRAME[0]}x{FRAME[1]}.\n\n{table(records, rate)}"
        files.write_text(flags.output / "data.md", page)
        print(page)


if __name__ == "__main__":
    main()
