"""Statistics of a race and its tables. Needs neither JAX nor PyTorch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OURS = "this project"
FORWARDS_PER_TRAINING_STEP = 3  # forward, and twice as much backward; nothing for recomputation
# Dense FLOP/s that the makers state, by a part of the device's name.
PEAK_FLOPS = {
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "H200": {"bfloat16": 989e12, "float32": 67e12},
}


class Spread(NamedTuple):
    """Median, quartiles and extremes."""

    low: float
    first_quartile: float
    median: float
    third_quartile: float
    high: float

    def __str__(self):
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """The `Spread` of at least one value."""
    return Spread(*(float(q) for q in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])))


def pairwise_ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """`slower` over `faster`, repetition by repetition, so that what slows both down for a while cancels."""
    return [float(one / other) for one, other in zip(slower, faster, strict=True)]


def flops_of_image(gmacs: float, pixels: int, train: bool) -> float:
    """FLOPs of one image: two for each multiply-accumulate; `gmacs` is that of a forward pass of 256x256 pixels."""
    return 2e9 * gmacs * pixels / 256**2 * (FORWARDS_PER_TRAINING_STEP if train else 1)


def peak_flops(device: str, dtype: str) -> float | None:
    """What the maker states for `device`, None if it is not in the table."""
    return next((peaks.get(dtype) for name, peaks in PEAK_FLOPS.items() if name in device), None)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest absolute difference of what both computed; NaN if either is not finite.

    Training losses are compared for as many steps as both made, relative to their size.
    """
    if ours.ndim == 1:
        steps = min(len(ours), len(theirs))
        return float(np.max(np.abs(ours[:steps] / theirs[:steps] - 1)))
    return float(np.max(np.abs(ours.astype(np.float64) - theirs)))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def race_tables(race: dict) -> str:
    """The Markdown page of a race as `benchmarks.race` records it (its JSON file)."""
    settings, tasks = race["settings"], race["tasks"]
    parts = [
        f"# {settings['variant']}, {settings['dtype']}, {race['device']}\n",
        f"{race['date']}; {race['processor']}, {settings['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in race["versions"].items())
        + f". Medians of {settings['repetitions']} repetitions that alternate between the sides; ratios are taken "
        "repetition by repetition: median (least to greatest). Over 1: this project is faster, or needs less.\n",
        _time_table(tasks),
        _memory_table(tasks),
        _first_table(tasks),
    ]
    if any(side["images_per_s"] for task in tasks for side in task["sides"].values()):
        parts.append(_throughput_table(tasks))
    parts += [f"{note}\n" for task in tasks for note in task["notes"]]
    return "\n".join(parts)


def _others(task):
    return {name: side for name, side in task["sides"].items() if name != OURS}


def _time_table(tasks) -> str:
    rows = []
    for task in tasks:
        ours = task["sides"][OURS]
        for name, side in _others(task).items():
            ratio = spread(pairwise_ratios(side["seconds"], ours["seconds"]))
            rows.append(
                [
                    f"{task['what']}, against {name}",
                    _seconds(spread(ours["seconds"]).median),
                    _seconds(spread(side["seconds"]).median),
                    str(ratio),
                    f"{min(side['seconds']) / min(ours['seconds']):.2f}",
                    f"{side['difference']:.1e}",
                ]
            )
    return markdown_table(["time", "ours", "theirs", "ratio", "of the least times", "results differ by"], rows)


def _memory_table(tasks) -> str:
    rows = []
    for task in tasks:
        ours = task["sides"][OURS]
        for name, side in task["sides"].items():
            device = side["device_bytes"]
            # On an accelerator its memory is what counts.
            ratio = device / ours["device_bytes"] if device else side["memory_bytes"] / ours["memory_bytes"]
            rows.append(
                [
                    f"{task['what']}, {name}",
                    "" if name == OURS else f"{ratio:.2f}",
                    _mebibytes(side["memory_bytes"]),
                    _mebibytes(side["memory_bytes"] - side["import_memory_bytes"]),
                    _mebibytes(side["compiling"]["memory_bytes"]) if side["compiling"] else "",
                    _mebibytes(device) if device else "",
                ]
            )
    header = ["peak memory, MiB", "ratio", "process", "less its imports", "process that compiles", "on the device"]
    return markdown_table(header, rows)


def _first_table(tasks) -> str:
    rows = []
    for task in tasks:
        for name, side in task["sides"].items():
            nothing, cached = f"{side['first_result_s']:.1f}", ""
            if side["compiling"]:
                nothing, cached = f"{side['compiling']['first_result_s']:.1f}", nothing
            rows.append([f"{task['what']}, {name}", nothing, cached])
    return markdown_table(["time to the first result, s", "from nothing", "with a filled compilation cache"], rows)


def _throughput_table(tasks) -> str:
    rows = []
    for task in tasks:
        for name, side in task["sides"].items():
            share = side["share_of_peak"]
            rows.append(
                [
                    f"{task['what']}, {name}",
                    f"{side['images_per_s']:.2f}",
                    f"{side['flops'] / 1e12:.2f}",
                    f"{100 * share:.1f} %" if share else "",
                ]
            )
    return markdown_table(["throughput", "images/s", "TFLOP/s", "of the chip's peak"], rows)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f}"
