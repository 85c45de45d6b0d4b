"""The results of the ablation study: statistics over the seeds, as a table, as JSON and as a chart."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import t as student

from concertormer_jax.analysis.ablation_study.runs import COUNTED_PX, METRICS, Result
from concertormer_jax.models import Network
from concertormer_jax.models.costs import Cost
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import pyplot
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.training.setup import module_from

PSNR, SSIM = METRICS
REFERENCE = "full"  # the variant with which the others are compared
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant over its seeds: a value for each.

    psnr (in dB), ssim: of the restored pictures; gain: their PSNR minus that of the inputs; difference: PSNR minus that
    of `REFERENCE`, for the seeds that both have.
    """

    variant: str
    cost: Cost
    seeds: tuple[int, ...]
    psnr: tuple[float, ...]
    gain: tuple[float, ...]
    ssim: tuple[float, ...]
    difference: tuple[float, ...]

    @property
    def stands_out(self) -> bool | None:
        """Whether 0 lies outside the 95 % confidence interval of the mean difference; None with fewer than two seeds.

        The interval is Student's t over the differences of the seeds. These are paired: one seed gives both variants
        the same crops in the same order.
        """
        if self.variant == REFERENCE or len(self.difference) < 2:
            return None
        return abs(float(np.mean(self.difference))) > self.half_interval

    @property
    def half_interval(self) -> float:
        """Half the width of the confidence interval, in dB: t * deviation / sqrt(n)."""
        count = len(self.difference)
        quantile = float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
        return quantile * deviation(self.difference) / count**0.5


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation over seeds, with n - 1 in the denominator."""
    return float(np.std(values, ddof=1))


def rows(results: Sequence[Result], costs: dict[str, Cost]) -> list[Row]:
    """Return a row for every variant in `costs` that has results, in that order."""
    by_variant = {
        variant: {result.seed: result for result in results if result.variant == variant} for variant in costs
    }
    reference = by_variant.get(REFERENCE, {})
    table = []
    for variant, runs in by_variant.items():
        if not runs:
            continue
        seeds = tuple(sorted(runs))
        table.append(
            Row(
                variant=variant,
                cost=costs[variant],
                seeds=seeds,
                psnr=tuple(runs[seed].scores[PSNR] for seed in seeds),
                gain=tuple(runs[seed].scores[PSNR] - runs[seed].input_scores[PSNR] for seed in seeds),
                ssim=tuple(runs[seed].scores[SSIM] for seed in seeds),
                difference=tuple(
                    runs[seed].scores[PSNR] - reference[seed].scores[PSNR] for seed in seeds if seed in reference
                ),
            )
        )
    return table


def results_json(table: Sequence[Row], results: Sequence[Result], config: ConfigDict) -> str:
    """Return the config, a summary of every variant, and every run as JSON."""
    content = {
        "config": json.loads(config.to_json_best_effort()),
        "counted_px": COUNTED_PX,
        "variants": [
            {
                "variant": row.variant,
                "parameters": row.cost.parameters,
                "macs": row.cost.macs,
                "paper_macs": row.cost.paper_macs,
                "seeds": row.seeds,
                "mean": {"psnr_rgb": _mean(row.psnr), "gain": _mean(row.gain), "ssim_rgb_3d": _mean(row.ssim)},
                "deviation_of_psnr": deviation(row.psnr) if len(row.seeds) > 1 else None,
                "difference_from_full": _mean(row.difference) if row.difference else None,
                "beyond_the_spread": row.stands_out,
            }
            for row in table
        ],
        "runs": [dataclasses.asdict(result) for result in results],
    }
    return json.dumps(content, indent=2) + "\n"


def markdown(table: Sequence[Row], results: Sequence[Result], config: ConfigDict) -> str:
    """Return the table, with a description of the runs above it, and what it can and cannot show below it."""
    one, module = results[0], module_from(config.model)
    crops = sum(steps * batch for steps, batch in zip(config.stages.steps, config.stages.batch, strict=True))
    sides = ", ".join(str(side) for side in config.stages.crop_px)
    lines = [
        "# Forms of the network at a small equal budget",
        "",
        f"Every form has width {module.width} and {_blocks(module)} blocks, and was trained for "
        f"{sum(config.stages.steps)} steps, {crops} crops of {sides} pixels. "
        f"PSNR (8-bit RGB) and SSIM are means over the middle {config.validation.crop_px} pixels of held-out pictures, "
        f"whose inputs have {one.input_scores[PSNR]:.3f} dB and {one.input_scores[SSIM]:.4f}, restored without TLC. "
        f"MACs are those of every convolution and matrix product for {COUNTED_PX}x{COUNTED_PX} pixels. After ± stands "
        f"the standard deviation over the seeds. Device: {one.devices}.",
        "",
        "| form | parameters | GMACs | seeds | PSNR | gain | SSIM | against full | beyond the spread |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *(_line(row) for row in table),
        "",
        *_conclusion(table, crops),
    ]
    return "\n".join(lines) + "\n"


def _blocks(module: Network) -> str:
    return ", ".join(map(str, (*module.encoder_blocks, module.middle_blocks, *module.decoder_blocks)))


def _line(row: Row) -> str:
    outcome = {None: "", True: "yes", False: "no"}[row.stands_out]
    against = ""
    if row.variant != REFERENCE and row.difference:
        against = _spread(row.difference, "+.3f")
    cells = [
        row.variant,
        f"{row.cost.parameters:,}",
        f"{row.cost.macs / 1e9:.3f}",
        str(len(row.seeds)),
        _spread(row.psnr, ".3f"),
        f"{_mean(row.gain):+.3f}",
        f"{_mean(row.ssim):.4f}",
        against,
        outcome,
    ]
    return f"| {' | '.join(cells)} |"


def _conclusion(table: Sequence[Row], crops: int) -> list[str]:
    compared = [row for row in table if row.stands_out is not None]
    out = [row.variant for row in compared if row.stands_out]
    sentences = [
        "What this can show: that every form trains and what it costs, and which forms learn faster or slower over "
        f"the first {crops} crops at this width, where the difference is beyond the spread.",
        "What it cannot show: which form is the best when it is trained to the end. The paper's order comes from "
        "networks of 29 million parameters after hundreds of thousands of steps of whole batches; here a form that "
        "starts well is favoured, and long-range attention has little to gain from small crops.",
    ]
    if len({row.seeds for row in table}) > 1:
        sentences.insert(
            0, "The forms have not all the same seeds yet: compare by the column against full, not by the means."
        )
    if compared:
        outcome = (
            f"{', '.join(out)}. All other differences are nothing" if out else "none. No difference here means anything"
        )
        needed = float(np.median([row.half_interval for row in compared]))
        sentences.insert(
            0,
            f"Beyond the spread of the seeds (0 lies outside the {CONFIDENCE:.0%} confidence interval of the paired "
            f"difference from {REFERENCE}): {outcome}. Half of the forms would have had to differ by more than "
            f"{needed:.2f} dB; of {len(compared)} comparisons about {(1 - CONFIDENCE) * len(compared):.1f} would stand "
            "out by chance alone.",
        )
    else:
        sentences.insert(
            0,
            f"Without two seeds each of {REFERENCE} and another form nothing can be compared: no difference in this "
            "table means anything.",
        )
    return "\n\n".join(sentences).splitlines()


def _spread(values: Sequence[float], form: str) -> str:
    text = format(_mean(values), form)
    return f"{text} ± {deviation(values):.3f}" if len(values) > 1 else text


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def draw(table: Sequence[Row], path: AnyPath) -> None:
    """Write the chart of `table` to `path`, a PNG.

    The left half shows PSNR against MACs, with a number for each variant; the right half, in the order of the numbers,
    the difference of every seed from `REFERENCE` with the same seed, or the PSNR if some variant has no difference. A
    bar is the mean plus and minus the standard deviation over the seeds. Raises UserError without matplotlib.
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


def _bar(values: Sequence[float]) -> float | None:
    return deviation(values) if len(values) > 1 else None
