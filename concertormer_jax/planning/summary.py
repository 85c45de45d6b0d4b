"""A summary of a network's cost: parameters and multiply-accumulates (MACs) by part and by stage."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.models import create, parameter_shapes
from concertormer_jax.models.costs import CDC, OUTSIDE, Cost, costs_of, counted_by_xla, total
from concertormer_jax.runtime import files, outputs
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.runtime.values import Whole

SIDE_PX = Whole(1, 32768)  # of the picture


class Summary(NamedTuple):
    """The cost of one picture. costs: {stage: {part: Cost}}; xla_macs: {stage: half the FLOPs that XLA counts}."""

    variant: str
    width_px: int
    height_px: int
    costs: dict[str, dict[str, Cost]]
    xla_macs: dict[str, float]

    @property
    def total(self) -> Cost:
        """The cost of the whole network."""
        return total(self.by_stage.values())

    @property
    def by_stage(self) -> dict[str, Cost]:
        """The cost of each stage, in the order in which they run."""
        return {stage: total(parts.values()) for stage, parts in self.costs.items()}

    @property
    def by_part(self) -> dict[str, Cost]:
        """The cost of each part, summed over all stages."""
        names = dict.fromkeys(part for parts in self.costs.values() for part in parts)
        return {name: total(parts.get(name, Cost()) for parts in self.costs.values()) for name in names}

    def as_json(self) -> dict[str, Any]:
        """Return all numbers, for programs."""
        stages = {
            stage: _entry(cost) | {"xla_macs": self.xla_macs[stage], "parts": _entries(self.costs[stage])}
            for stage, cost in self.by_stage.items()
        }
        return {
            "variant": self.variant,
            "width_px": self.width_px,
            "height_px": self.height_px,
            **_entry(self.total),
            "xla_macs": sum(self.xla_macs.values()),
            "communication": _entry(self.by_part.get(CDC, Cost())),
            "parts": _entries(self.by_part),
            "stages": stages,
        }

    def __str__(self) -> str:
        whole, communication = self.total, self.by_part.get(CDC, Cost())
        header = ["", "parameters", "GMACs, paper", "GMACs, all", "GMACs, XLA"]
        by_part = [_row(name, cost) for name, cost in self.by_part.items()]
        by_stage = [_row(name, cost, self.xla_macs[name]) for name, cost in self.by_stage.items()]
        sums = _row("total", whole, sum(self.xla_macs.values()))
        lines = [f"{self.variant}, one picture of {self.width_px}x{self.height_px}", ""]
        lines += _table([header, *by_part, None, *by_stage, None, sums])
        if communication.macs:
            lines += ["", f"{CDC}: {_share(communication, whole)}"]
        return "\n".join(lines)


def summarise(variant: str, width_px: int, height_px: int) -> Summary:
    """Count the named network (a size or an ablation) on one picture. Raises UserError for an unknown name."""
    module = create(variant)
    costs = costs_of(module, height_px, width_px)
    images = jax.ShapeDtypeStruct((1, height_px, width_px, 3), jnp.float32)
    forward = jax.jit(lambda params, images: module.apply({"params": params}, images)[-1])
    flops = counted_by_xla(forward.trace(parameter_shapes(module), images))
    xla_macs = {stage: flops.get("" if stage == OUTSIDE else stage, 0.0) / 2 for stage in costs}
    return Summary(variant, width_px, height_px, costs, xla_macs)


def draw(summary: Summary, path: AnyPath) -> None:
    """Write a bar chart of the MACs of every stage, by part. Raises UserError without matplotlib."""
    pyplot = outputs.pyplot("--chart")
    figure, axes = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    left = dict.fromkeys(summary.costs, 0.0)
    for index, part in enumerate(summary.by_part):
        values = {stage: parts.get(part, Cost()).macs / 1e9 for stage, parts in summary.costs.items()}
        if not any(values.values()):
            continue
        axes.barh(list(values), list(values.values()), left=list(left.values()), label=part, color=f"C{index}")
        left = {stage: left[stage] + value for stage, value in values.items()}
    axes.invert_yaxis()
    axes.set_xlabel("GMACs, every convolution and matrix product")
    whole = summary.total
    axes.set_title(
        f"{summary.variant}, {summary.width_px}x{summary.height_px}: "
        f"{whole.parameters / 1e6:.2f} M parameters, {whole.macs / 1e9:.2f} GMACs"
    )
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    with files.written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def _entry(cost: Cost) -> dict[str, int]:
    return {"parameters": cost.parameters, "paper_macs": cost.paper_macs, "macs": cost.macs}


def _entries(costs: Mapping[str, Cost]) -> dict[str, dict[str, int]]:
    return {name: _entry(cost) for name, cost in costs.items()}


def _row(name: str, cost: Cost, xla_macs: float | None = None) -> list[str]:
    giga = [f"{macs / 1e9:,.3f}" for macs in (cost.paper_macs, cost.macs)]
    return [name, f"{cost.parameters:,}", *giga, "" if xla_macs is None else f"{xla_macs / 1e9:,.3f}"]


def _table(rows: Sequence[list[str] | None]) -> list[str]:
    """Lines with aligned columns, the first to the left, the others to the right; None gives a rule."""
    widths = [max(map(len, column)) for column in zip(*filter(None, rows), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return ["  ".join(map(_aligned, row, widths, range(len(widths)))).rstrip() if row else rule for row in rows]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _share(part: Cost, whole: Cost) -> str:
    return (
        f"{part.macs / 1e9:.3f} GMACs, {part.macs / whole.macs:.2%} of all "
        f"({part.paper_macs / 1e9:.3f}, {part.paper_macs / whole.paper_macs:.2%} in the paper's count); "
        f"{part.parameters:,} parameters, {part.parameters / whole.parameters:.1%}"
    )
