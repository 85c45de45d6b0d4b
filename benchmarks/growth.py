"""Time and memory against image size: the cost of a pixel should not depend on it.

    python -m benchmarks.growth                              the small demo network, on this CPU
    python -m benchmarks.growth --variant=lite --device=gpu --dtype=bfloat16

Restores square pictures of 128 to 2048 pixels, each in a process of its own whose program was compiled before. Writes
growth.json, growth.md and growth.png (needs matplotlib) to --output. A size that would need more memory than there is
ends the series.
"""

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks import report
from benchmarks.jobs import environment, make_job, write_weights
from benchmarks.machine import processor, use_cores
from benchmarks.report import OURS
from benchmarks.sides import Side
from concertormer_jax.models import VARIANTS
from concertormer_jax.runtime import errors, files
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.memory import available_memory_bytes

SIZES_PX = (128, 256, 512, 1024, 2048)
REFERENCE_PX = 512
LEAST_REPETITION_S = 0.3


def measure(folder: Path, flags, size: int, cores: int) -> dict:
    """Restore pictures of `size` x `size` pixels. Returns seconds of each repetition and peak memory in bytes."""
    job = make_job(
        folder, variant=flags.variant, dtype=flags.dtype, device=flags.device, batch=1, height=size, width=size
    )
    variables = environment(flags.device, cores, folder / "cache")
    Side(OURS, sys.executable, "benchmarks.jax_worker", job, variables).close()  # compiles
    with Side(OURS, sys.executable, "benchmarks.jax_worker", job, variables) as side:
        calls = max(1, round(LEAST_REPETITION_S / side.seconds(1)))
        seconds = [side.seconds(calls) for _ in range(flags.repetitions)]
        found = side.describe()
    own = found["memory_bytes"] - side.import_memory_bytes
    return {
        "size_px": size,
        "seconds": seconds,
        "memory_bytes": found["device_bytes"] or own,
        "device": found["device"],
        "versions": found["versions"],
    }


def fits(measured: list[dict], size: int, available_bytes: int) -> bool:
    """Whether the memory of the largest picture so far, scaled to `size`, is available."""
    if not measured:
        return True
    last = measured[-1]
    return last["memory_bytes"] * (size / last["size_px"]) ** 2 <= available_bytes


def table(measured: list[dict]) -> str:
    """The Markdown table, with costs per pixel relative to the reference size."""
    reference = next((record for record in measured if record["size_px"] == REFERENCE_PX), measured[-1])
    rows = []
    for record in measured:
        time, memory = cost_per_pixel(record)
        time_there, memory_there = cost_per_pixel(reference)
        rows.append(
            [
                f"{record['size_px']}x{record['size_px']}",
                f"{report.spread(record['seconds']).median:.3f}",
                f"{1e6 * time:.2f}",
                f"{time / time_there:.2f}",
                f"{record['memory_bytes'] / 2**20:,.0f}",
                f"{memory / memory_there:.2f}",
            ]
        )
    there = f"{reference['size_px']}x{reference['size_px']}"
    header = ["picture", "s", "µs per pixel", f"relative to {there}", "peak memory, MiB", "per pixel, relative"]
    return report.markdown_table(header, rows)


def cost_per_pixel(record: dict) -> tuple[float, float]:
    """Seconds (median) and bytes of a pixel."""
    pixels = record["size_px"] ** 2
    return report.spread(record["seconds"]).median / pixels, record["memory_bytes"] / pixels


def draw(measured: list[dict], title: str, path: Path) -> None:
    """Write the chart: time and memory over the number of pixels, both logarithmic, beside straight growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pixels = [record["size_px"] ** 2 for record in measured]
    reference = next((record for record in measured if record["size_px"] == REFERENCE_PX), measured[-1])
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    series = (
        ("time, s", [report.spread(record["seconds"]).median for record in measured], 0),
        ("peak memory, GiB", [record["memory_bytes"] / 2**30 for record in measured], 1),
    )
    for panel, (label, values, which) in zip(panels, series, strict=True):
        there = cost_per_pixel(reference)[which] / (2**30 if which else 1)
        panel.loglog(pixels, [there * count for count in pixels], color="0.75", label="in proportion to the pixels")
        panel.loglog(pixels, values, "o-", color="tab:blue", label="measured")
        panel.set_xticks(pixels, [f"{record['size_px']}²" for record in measured])
        panel.minorticks_off()
        panel.set_xlabel("pixels")
        panel.set_title(label)
        panel.grid(True, color="0.92")
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    with files.written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="demo", choices=list(VARIANTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_PX, help="sides in pixels, smallest first")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, help="cores that may be used (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/growth"), help="folder for the results")
    flags = parser.parse_args(arguments)
    with errors.reported(), tempfile.TemporaryDirectory(prefix="growth-") as folder:
        if flags.repetitions < 1:
            raise UserError(f"--repetitions={flags.repetitions}: must be at least 1.")
        if list(flags.sizes) != sorted(set(flags.sizes)) or flags.sizes[0] < 1:
            raise UserError(f"--sizes={flags.sizes}: must be positive and grow.")
        cores = use_cores(flags.threads)
        write_weights(flags.variant, Path(folder))
        measured, note = [], ""
        for size in tqdm(flags.sizes, unit="size", leave=False):
            if flags.device == "cpu" and not fits(measured, size, available_memory_bytes()):
                note = f"\n{size}x{size} would need more memory than is available.\n"
                break
            measured.append(measure(Path(folder), flags, size, cores))
        first = measured[0]
        title = f"{flags.variant}, {flags.dtype}, {first['device']}"
        record = {"date": datetime.date.today().isoformat(), "processor": processor(), "title": title}
        files.write_text(flags.output / "growth.json", json.dumps(record | {"sizes": measured}, indent=2) + "\n")
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
        page = f"{title}: forward, {record['date']}; {record['processor']}, {cores} threads; {versions}.\n\n"
        page += table(measured) + note
        files.write_text(flags.output / "growth.md", page)
        draw(measured, title, flags.output / "growth.png")
        print(page)


if __name__ == "__main__":
    main()
