"""The sums of a program's schedule by stage and part of the network, and the roofline that follows from them."""

import collections
import dataclasses
from collections.abc import Callable, Iterable

from concertormer_jax.planning import hlo, profile
from concertormer_jax.planning.schedule import NOTHING, Schedule, Work
from concertormer_jax.runtime.peaks import Peak

BETWEEN = "(between operations)"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: `count` instructions, and the sums over them of runs, work and bytes in main memory.

    estimate: the sum of the compiler's estimated cycles.
    """

    name: str
    count: int
    times: float
    work: Work
    estimate: float
    hbm_bytes: float


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A program's schedule in one run on one chip.

    total: all cycles; capacities: slots of a bundle by kind; tables: by stage, part, kind of operation and operation,
    each of which adds up to `total`; missing: instructions whose schedule was not found; uncertain: instructions with
    loops of unknown length, which count as one turn.
    """

    total: Work
    capacities: dict[str, int]
    tables: dict[str, list[Row]]
    missing: tuple[str, ...]
    uncertain: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of a run by each bound: the schedule, the matrix units at their peak, and main memory."""

    schedule_s: float
    mxu_s: float
    memory_s: float

    @property
    def step_s(self) -> float:
        """The largest of the three."""
        return max(self.schedule_s, self.mxu_s, self.memory_s)

    @property
    def binds(self) -> str:
        """The name of the largest."""
        bounds = {"the schedule": self.schedule_s, "the matrix units": self.mxu_s, "main memory": self.memory_s}
        return max(bounds, key=lambda name: bounds[name])


def summed(program: hlo.Program, runs: list[hlo.Executed], schedule: Schedule, top: int) -> Scheduled:
    """Sum the schedule up. top: rows in the table of operations; one more row holds all others."""
    between = Row(BETWEEN, 0, 0.0, schedule.between, 0.0, 0.0)
    groups = {
        "stage": lambda run: profile.stage_and_part(run)[0],
        "part, stages together": lambda run: profile.stage_and_part(run)[1],
        "kind": lambda run: profile.kind(program, run.instruction),
    }
    tables = {name: _sorted([*_grouped(runs, schedule, key), between]) for name, key in groups.items()}
    operations = _sorted(_grouped(runs, schedule, lambda run: profile.description(program, run)))
    tables["operation"] = [*operations[:top], _joined("(other operations)", operations[top:]), between]
    uncertain = [name for name, work in schedule.works.items() if work.unknown_loops]
    total = _joined("", tables["stage"]).work
    return Scheduled(total, schedule.capacities, tables, schedule.missing, tuple(uncertain))


def roofline(scheduled: Scheduled, flops: float, hbm_bytes: float, peak: Peak) -> Roofline:
    """Return the bounds of a run. flops, hbm_bytes: of its matrix products and in main memory, on each chip."""
    return Roofline(scheduled.total.cycles / peak.clock_hz, flops / peak.flops_per_s, hbm_bytes / peak.bytes_per_s)


def describe(scheduled: Scheduled, bounds: Roofline, images: int) -> str:
    """Return several lines: the cycles, the bounds, and what is not known. images: in a run."""
    total = scheduled.total
    lines = [
        f"  schedule      {total.cycles / 1e6:.2f} million cycles (bundles times turns), "
        f"{_percent(total.empty, total.cycles)} of them issue nothing",
        f"  roofline      schedule {bounds.schedule_s * 1e3:.2f} ms, matrix units {bounds.mxu_s * 1e3:.2f} ms, main "
        f"memory {bounds.memory_s * 1e3:.2f} ms: {bounds.binds} binds",
        f"  step          {bounds.step_s * 1e3:.2f} ms, {images / bounds.step_s:.1f} images/s, if nothing waits",
        "  not known     waiting for main memory (copies between it and the chip), for other chips and for full queues",
    ]
    if scheduled.missing:
        lines.append(f"  not counted   operations whose schedule was not found: {_listed(scheduled.missing)}")
    if scheduled.uncertain:
        lines.append(f"  counted once  loops of unknown length within {_listed(scheduled.uncertain)}")
    return "\n".join(lines)


def tables(scheduled: Scheduled) -> str:
    """Return a table for each way of grouping. Empty bundles and used slots are in percent of the row's cycles."""
    kinds = [name.rpartition(":")[2] for name in scheduled.capacities]
    blocks = []
    for name, rows in scheduled.tables.items():
        heading = f"{'kcycles':>9} {'%':>5} {'estimate':>9} {'empty%':>6}" + "".join(f" {kind:>6}" for kind in kinds)
        lines = [f"{heading} {'HBM MB':>8} {'count':>6} {'runs':>6}  by {name}"]
        for row in [*rows, _joined("(sum)", rows)]:
            work = row.work
            if not (work.cycles or row.hbm_bytes):
                continue
            available = work.cycles or float("inf")
            used = "".join(
                f" {100 * work.slots.get(slot, 0) / (available * capacity):6.1f}"
                for slot, capacity in scheduled.capacities.items()
            )
            lines.append(
                f"{work.cycles / 1e3:9.1f} {100 * work.cycles / (scheduled.total.cycles or 1):5.1f} "
                f"{row.estimate / 1e3:9.1f} {100 * work.empty / available:6.1f}{used} "
                f"{row.hbm_bytes / 1e6:8.1f} {row.count:6d} {row.times:6.0f}  {row.name}"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _grouped(runs: list[hlo.Executed], schedule: Schedule, key: Callable[[hlo.Executed], str]) -> list[Row]:
    groups = collections.defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return [
        Row(
            name,
            len(group),
            sum(run.times for run in group),
            _added(schedule.works.get(run.instruction.name, NOTHING).times(run.times) for run in group),
            sum(run.times * (run.instruction.cycles or 0) for run in group),
            sum(run.times * run.hbm_bytes for run in group),
        )
        for name, group in groups.items()
    ]


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.work.cycles, reverse=True)


def _joined(name: str, rows: list[Row]) -> Row:
    return Row(
        name,
        sum(row.count for row in rows),
        sum(row.times for row in rows),
        _added(row.work for row in rows),
        sum(row.estimate for row in rows),
        sum(row.hbm_bytes for row in rows),
    )


def _added(works: Iterable[Work]) -> Work:
    return sum(works, NOTHING)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
