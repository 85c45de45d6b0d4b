"""The chart of the comparison: PSNR against MACs, every seed a dot."""

from collections.abc import Sequence

import numpy as np

from concertormer_jax.charts import pyplot
from concertormer_jax.evidence.runs import COUNTED_PX
from concertormer_jax.evidence.tables import REFERENCE, Row, deviation
from concertormer_jax.files import written_atomically


def draw(table: Sequence[Row], path) -> None:
    """Write the chart of `table` to `path`, a PNG.

    To the left PSNR against MACs, the forms numbered; to the right their names and numbers in order of PSNR. A bar is
    the mean plus and minus the standard deviation over the seeds. Raises UserError without matplotlib.
    """
    plt = pyplot("the chart")
    ordered = sorted(table, key=lambda row: np.mean(row.psnr))
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(11, 0.9 + 0.27 * max(12, len(ordered))),
        sharey=False,
        layout="constrained",
        width_ratios=(1.25, 1),
    )
    for place, row in enumerate(ordered):
        colour = "C3" if row.variant == REFERENCE else "C0"
        mean, bar = np.mean(row.psnr), deviation(row.psnr) if len(row.psnr) > 1 else None
        number = len(ordered) - place
        macs = row.cost.macs / 1e9
        left.errorbar(macs, mean, yerr=bar, color=colour, alpha=0.35, linewidth=1)
        left.text(
            macs,
            mean,
            str(number),
            color="white",
            fontsize=7,
            ha="center",
            va="center",
            zorder=3,
            bbox={"boxstyle": "circle,pad=0.22", "facecolor": colour, "linewidth": 0},
        )
        right.errorbar(mean, place, xerr=bar, color=colour, alpha=0.35, linewidth=3)
        right.plot(row.psnr, [place] * len(row.psnr), "o", color=colour, markersize=3.5)
    left.set_xscale("log")
    left.set_xlabel(f"GMACs at {COUNTED_PX}x{COUNTED_PX} (logarithmic)")
    left.set_ylabel("PSNR in dB, held-out pictures")
    right.set_yticks(range(len(ordered)), [f"{row.variant}  {len(ordered) - i}" for i, row in enumerate(ordered)])
    right.set_xlabel("PSNR in dB: every seed, mean ± standard deviation")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=90)
    plt.close(figure)
