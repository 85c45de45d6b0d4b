"""The chart of the comparison: PSNR against MACs, every seed a dot."""

from collections.abc import Sequence

import numpy as np

from concertormer_jax.charts import pyplot
from concertormer_jax.evidence.runs import COUNTED_PX
from concertormer_jax.evidence.tables import REFERENCE, Row, deviation
from concertormer_jax.files import written_atomically


def draw(table: Sequence[Row], path) -> None:
    """Write the chart of `table` to `path`, a PNG.

    To the left PSNR against MACs, the forms numbered. To the right, in the order of the numbers, every seed's
    difference from `REFERENCE` of the same seed (where some form has none, the PSNR itself). A bar is the mean plus and
    minus the standard deviation over the seeds. Raises UserError without matplotlib.
    """
    plt = pyplot("the chart")
    paired = all(row.difference for row in table)
    compared = {row.variant: row.difference if paired else row.psnr for row in table}
    ordered = sorted(table, key=lambda row: np.mean(compared[row.variant]), reverse=True)
    height = 0.9 + 0.27 * max(12, len(ordered))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), layout="constrained", width_ratios=(1.25, 1))
    for number, row in enumerate(ordered, 1):
        colour = "C3" if row.variant == REFERENCE else "C0"
        macs, values = row.cost.macs / 1e9, compared[row.variant]
        left.errorbar(macs, np.mean(row.psnr), yerr=_bar(row.psnr), color=colour, alpha=0.35, linewidth=1)
        label = {"color": "white", "fontsize": 7, "ha": "center", "va": "center", "zorder": 3}
        circle = {"boxstyle": "circle,pad=0.22", "facecolor": colour, "linewidth": 0}
        left.text(macs, np.mean(row.psnr), str(number), bbox=circle, **label)
        right.errorbar(np.mean(values), number, xerr=_bar(values), color=colour, alpha=0.35, linewidth=3)
        right.plot(values, [number] * len(values), "o", color=colour, markersize=3.5)
    left.set_xscale("log")
    for axis in (left.xaxis.set_major_formatter, left.xaxis.set_minor_formatter):
        axis("{x:g}")
    left.tick_params(axis="x", which="minor", labelsize=7)
    left.set_xlabel(f"GMACs at {COUNTED_PX}x{COUNTED_PX} (logarithmic)")
    left.set_ylabel("PSNR in dB, mean ± standard deviation")
    right.set_yticks(range(1, len(ordered) + 1), [f"{row.variant}  {n}" for n, row in enumerate(ordered, 1)])
    right.invert_yaxis()
    what = f"difference from {REFERENCE} of the same seed" if paired else "PSNR"
    right.set_xlabel(f"{what} in dB:\nevery seed, and mean ± standard deviation")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=90)
    plt.close(figure)


def _bar(values):
    return deviation(values) if len(values) > 1 else None
