"""What is said of a plan: text for people, and JSON for programs."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from concertormer_jax.planning import schedule_report
from concertormer_jax.planning.chips import Chip, Target
from concertormer_jax.planning.compilation import Plan
from concertormer_jax.planning.fitting import LargestBatch
from concertormer_jax.runtime.peaks import Peak


def roofline_s(plan: Plan, chip: Chip) -> float | None:
    """Estimate the least time of a run in seconds: of its arithmetic or its HBM traffic, whichever is longer."""
    if not plan.fits or chip.peak is None:
        return None
    return max(chip.peak.arithmetic_s(plan.products), plan.hbm_bytes / chip.peak.bytes_per_s)


def cycles_s(plan: Plan, chip: Chip) -> float | None:
    """Estimate the time of a run in seconds by the compiler's cycles, without waiting for other chips."""
    return None if plan.cycles is None or chip.peak is None else plan.cycles / chip.peak.clock_hz


def heading(target: Target) -> str:
    """Return a line on the devices, and one on their memory where there is something to say."""
    chip = target.chip
    known = [_memory(chip.memory_bytes)] if chip.memory_bytes else []
    if peak := chip.peak:
        known.append(_rates(peak))
        known.append(f"{peak.bytes_per_s / 1e9:.0f} GB/s, {peak.clock_hz / 1e9:.2f} GHz")
    line = f"{target.name}: {len(target.devices)} x {chip.name} (each {', '.join(known) or 'of unknown memory'})"
    return f"{line}\n{chip.note}" if chip.note else line


def describe(plan: Plan, chip: Chip, suggestions: Iterable[str] = ()) -> str:
    """Return several lines on a program. suggestions: sentences for one that does not fit."""
    if not plan.fits:
        lines = [f"{plan.name}: does NOT fit, {plan.reason}"]
        lines += [f"  memory        {_parts(plan.memory)}"] if plan.memory else []
        lines.append(f"  compiler      {plan.compile_s:.0f} s")
        lines += [f"  suggestion    {suggestion}" for suggestion in suggestions]
        return "\n".join(lines)
    limit = f" of {_memory(plan.memory_limit)}" if plan.memory_limit else ""
    lines = [
        f"{plan.name}: fits" if plan.memory_limit else f"{plan.name}: compiled; how much memory there is, is not known",
        f"  memory        {_memory(plan.memory_total)}{limit} on each chip: {_parts(plan.memory)}",
        f"  arithmetic    {_arithmetic(plan)}",
        f"  traffic       {_scaled(plan.bytes, 'B')} on each chip, {_scaled(plan.hbm_bytes, 'B')} of it in main memory",
        f"  collectives   {_collectives(plan)}",
        f"  program       {_program(plan)}compiled in {plan.compile_s:.1f} s",
    ]
    lines += _estimates(plan, chip)
    if plan.schedule and chip.peak:
        bounds = schedule_report.roofline(plan.schedule, plan.flops, plan.hbm_bytes, chip.peak)
        lines.append(schedule_report.describe(plan.schedule, bounds, plan.images))
    if plan.unknown_loops:
        lines.append(f"  not counted   repetitions of {', '.join(plan.unknown_loops)}: their number is not known")
    return "\n".join(lines)


def _estimates(plan: Plan, chip: Chip) -> list[str]:
    """Lines on the time of a run: by the compiler's cycles, where it gives some, and by the roofline."""
    roofline, by_cycles = roofline_s(plan, chip), cycles_s(plan, chip)
    if roofline is None or chip.peak is None:
        return []
    if plan.cycles is None or by_cycles is None:
        binds = "arithmetic" if chip.peak.arithmetic_s(plan.products) >= roofline else "main memory"
        line = f"  estimates     at least {_time(roofline)} a run (roofline: {binds} binds)"
        line += f", so at most {plan.images / roofline:.1f} images/s"
        hours = f"; {plan.steps:,} steps in at least {plan.steps * roofline / 3600:.1f} h" if plan.steps else ""
        return [line + hours]
    lines = [
        f"  cycles        {plan.cycles / 1e6:.2f} million, the compiler's estimate"
        f" (in {plan.instructions} instructions, loops included)",
        f"  estimates     {_time(by_cycles)} a run by the cycles; {_time(roofline)} at best (roofline)",
    ]
    speed = f"  estimates     {plan.images / by_cycles:.1f} images/s by the cycles"
    if plan.steps:
        hours = plan.steps * by_cycles / 3600
        speed += f"; {plan.steps:,} steps in {hours:.1f} h (at best {plan.steps * roofline / 3600:.1f} h)"
    return [*lines, speed]


def tables(plan: Plan) -> str:
    """Return the tables of where the cycles and bytes go, one for each way of grouping.

    A share is that of the cycles, or of the bytes where the compiler estimates no cycles.
    """
    blocks = []
    for name, rows in plan.tables.items():
        cycles = f"{'Mcycles':>8} " if plan.cycles else ""
        lines = [f"{cycles}{'%':>5} {'GB':>8} {'HBM GB':>8} {'count':>6} {'runs':>7}  by {name}"]
        for row in rows:
            cycles = f"{row.cycles / 1e6:8.3f} " if plan.cycles else ""
            share = row.cycles / plan.cycles if plan.cycles else row.bytes / (plan.bytes or 1)
            lines.append(
                f"{cycles}{100 * share:5.1f} {row.bytes / 1e9:8.3f} {row.hbm_bytes / 1e9:8.3f} {row.count:6d} "
                f"{row.times:7.0f}  {row.name}"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def describe_largest(largest: LargestBatch | None) -> str:
    """Return a line on the largest batch that fits, None if it was not found."""
    if largest is None:
        return "  largest batch not found: how much memory there is, or is needed, is not known"
    needs = f"{largest.next_batch} would need {_memory(largest.next_bytes)}"
    how = "compiled as well" if largest.next_compiled else "by the line through two batches"
    if not largest.batch:
        return f"  largest batch none fits: {needs} ({how})"
    return f"  largest batch {largest.batch} ({_memory(largest.bytes)}, compiled); {needs} ({how})"


def as_json(plan: Plan, chip: Chip, suggestions: Iterable[str], largest: LargestBatch | None = None) -> dict[str, Any]:
    """Return the fields of `Plan` in SI units, the estimates, and the largest batch that fits."""
    bounds = None
    if plan.schedule and chip.peak:
        bounds = schedule_report.roofline(plan.schedule, plan.flops, plan.hbm_bytes, chip.peak)
    return {
        **dataclasses.asdict(plan),
        "fits": plan.fits,
        "flops": plan.flops,
        "estimated_step_s_by_cycles": cycles_s(plan, chip),
        "estimated_step_s_roofline": roofline_s(plan, chip),
        "estimated_step_s_by_schedule": bounds.step_s if bounds else None,
        "suggestions": list(suggestions),
        "largest_batch": dataclasses.asdict(largest) if largest else None,
    }


def _parts(memory: dict[str, int]) -> str:
    return ", ".join(f"{kind} {_memory(size)}" for kind, size in memory.items())


def _rates(peak: Peak) -> str:
    """The FLOP/s, by the precision of products where they differ."""
    names = {"bfloat16": peak.flops_per_s, "TF32": peak.tf32_flops_per_s, "float32": peak.float32_flops_per_s}
    known = {name: rate for name, rate in names.items() if rate}
    if len(known) == 1:
        return f"{peak.flops_per_s / 1e12:.0f} TFLOP/s"
    return ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in known.items())


def _arithmetic(plan: Plan) -> str:
    parts = ", ".join(f"{precision} {_scaled(flops, 'FLOP')}" for precision, flops in plan.products.items() if flops)
    shares = f": {parts}" if parts else ""
    return f"{_scaled(plan.flops, 'FLOP')} on each chip (matrix products and convolutions){shares}"


def _program(plan: Plan) -> str:
    """Its size, which XLA does not say of a GPU's."""
    return f"{_scaled(plan.program_bytes, 'B')}, " if plan.program_bytes else ""


def _collectives(plan: Plan) -> str:
    found = [f"{c.count} {c.kind}, run {c.times:.0f} times on {_scaled(c.bytes, 'B')} in all" for c in plan.collectives]
    return "; ".join(found) or "none"


def _memory(size: float) -> str:
    """Bytes as GiB, or MiB when that is less than a tenth of one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _scaled(value: float, unit: str) -> str:
    """A number of three digits or more with a decimal prefix and the unit."""
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.4g} T{unit}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"
