"""The compiler's final schedule of a TPU program, from the files that libtpu writes, matched to operations.

It needs no TPU. libtpu reads the flags that request these files, in LIBTPU_INIT_ARGS, only when a process loads it.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from concertormer_jax.planning import bundles, hlo
from concertormer_jax.runtime.errors import UserError

TRIED = "0.0.42.1"  # the version of libtpu whose files are read here
_FLAGS = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles|utilization"
_FILE = re.compile(r"\d+-(.+)-\d\d-(final_bundles|final_hlo-static-per-bundle-utilization)\.txt")
_PROGRAM = "TLP"  # libtpu's name of the instructions between operations
_CALL = re.compile(r"\bcall [^}]*?/\* %([\w.\-]+) = |\binlined_call [^}]*?/\* %([\w.\-]+) = ")
_METADATA = re.compile(r',? metadata=\{(?:[^{}"]|"[^"]*")*\}')
_CALLED = re.compile(r",? (?:calls|to_apply)=%?[\w.\-]+")
# Where an operation's scoped memory lies, which differs between equal operations.
_PLACES = re.compile(r',"used_scoped_memory_configs":\[[^\]]*\]')


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of an operation in one run.

    cycles: bundles that run, loops included; empty: those of them that issue nothing; slots: instructions by the kind
    of slot that they take in a bundle; unknown_loops: the number of loops of unknown length, which count as one turn.
    """

    cycles: float
    empty: float
    slots: dict[str, float]
    unknown_loops: int = 0

    def times(self, factor: float) -> "Work":
        """Return the work of `factor` runs."""
        slots = {name: factor * used for name, used in self.slots.items()}
        return Work(factor * self.cycles, factor * self.empty, slots, self.unknown_loops)

    def __add__(self, other: "Work") -> "Work":
        slots = {name: self.slots.get(name, 0) + other.slots.get(name, 0) for name in self.slots | other.slots}
        return Work(
            self.cycles + other.cycles, self.empty + other.empty, slots, self.unknown_loops + other.unknown_loops
        )


NOTHING = Work(0.0, 0.0, {})


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A program's schedule.

    capacities: slots of a bundle by kind; works: name of an instruction to the work of one run; between: the work
    between operations: calls, scalars, starting and awaiting copies; missing: names of called instructions whose
    schedule was not found.
    """

    capacities: dict[str, int]
    works: dict[str, Work]
    between: Work
    missing: tuple[str, ...]


def request(folder: Path) -> None:
    """Have libtpu write its schedules to `folder`. Call it before this process loads libtpu.

    Raises UserError for a folder with a space in its name, at which libtpu ends it.
    """
    if re.search(r"\s", str(folder)):
        raise UserError(
            f"--schedule: libtpu cannot write to {folder}; set TMPDIR to a folder without a space in its name"
        )
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} {_FLAGS} {given}".strip()


def refused() -> UserError:
    """Return the error for a libtpu that does not know the flags of `request`."""
    return UserError(
        f"libtpu {_version()} does not take the flags that make it write its schedule; plan without --schedule, or "
        f"install libtpu {TRIED}, with which it was tried"
    )


def read(folder: Path, program: hlo.Program, runs: list[hlo.Executed]) -> Schedule:
    """Read the files that libtpu wrote for `program`. runs: by `hlo.executed`.

    libtpu writes one file for all equal operations; `signature` finds the others. Raises UserError when there are no
    such files.
    """
    texts: dict[str, Path] = {}
    usages: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        found = _FILE.fullmatch(path.name)
        if found:
            (texts if found.group(2) == "final_bundles" else usages)[found.group(1)] = path
    if _PROGRAM not in texts or not texts.keys() <= usages.keys():
        raise UserError(
            f"libtpu {_version()} wrote no schedule of the program that can be read; plan without --schedule, or "
            f"install libtpu {TRIED}, with which it was tried"
        )
    capacities, _ = _usage(usages[_PROGRAM])
    written = {name: _work(texts[name], usages[name]) for name in texts if name != _PROGRAM}
    around = [work for name, work in written.items() if name.startswith("<")]  # beginning and end of the program
    between, called = _between(texts[_PROGRAM], usages[_PROGRAM], {run.instruction.name: run.times for run in runs})
    home = {name: computation for computation in program.computations.values() for name in computation.instructions}
    equal = {}
    for name in written.keys() & home.keys():
        equal.setdefault(signature(program, home[name], home[name].instructions[name]), written[name])
    works, missing = {}, []
    for run in runs:
        name = run.instruction.name
        work = written.get(name) or equal.get(signature(program, home[name], run.instruction))
        if work is not None:
            works[name] = work
        elif name in called:
            missing.append(name)
    return Schedule(capacities, works, sum(around, between), tuple(missing))


def signature(program: hlo.Program, computation: hlo.Computation, instruction: hlo.Instruction) -> tuple:
    """Return a key that is equal for instructions that compute the same from operands of equal shapes and layouts."""
    operands = tuple(computation.instructions[name].shapes for name in instruction.operands)
    return operands, *_meaning(program, instruction)


def _meaning(program: hlo.Program, instruction: hlo.Instruction) -> tuple:
    """What an instruction computes, without its name and those of its operands."""
    attributes = instruction.attributes
    for pattern in (_METADATA, _CALLED, _PLACES):
        attributes = pattern.sub("", attributes)
    called = tuple(_body(program, program.computations[name]) for name in instruction.called.values())
    text = instruction.text if instruction.opcode in ("constant", "parameter") else ""
    return instruction.opcode, instruction.shapes, text, attributes, called


def _body(program: hlo.Program, computation: hlo.Computation) -> tuple:
    """A computation without names: its instructions are numbered in the order in which the result needs them."""
    numbers: dict[str, int] = {}
    lines, needed = [], [computation.root]
    while needed:
        instruction = computation.instructions[needed[-1]]
        missing = [name for name in instruction.operands if name not in numbers]
        needed.extend(reversed(missing))
        if not missing:
            name = needed.pop()
            if name not in numbers:
                numbers[name] = len(numbers)
                operands = tuple(numbers[operand] for operand in instruction.operands)
                lines.append((operands, *_meaning(program, instruction)))
    return tuple(lines)


def _usage(path: Path) -> tuple[dict[str, int], list[list[int]]]:
    """Slots of a bundle by kind, and the used ones of each bundle in the same order."""
    heading, _, body = path.read_text().partition("== UTILIZATION:\n")
    names, capacities = heading.splitlines()[1:3]
    kinds = [name.strip() for name in names.split(",")]
    rows = [[int(used) for used in row.split()] for row in body.splitlines()]
    return dict(zip(kinds, map(int, capacities.split()), strict=True)), rows


def _sum(
    parts: Sequence[str], rows: Sequence[Sequence[int]], kinds: Collection[str], times: Sequence[float], unknown: int
) -> Work:
    """The work of bundles. rows: the slots that each uses, by kind; times: how often each runs."""
    slots = dict.fromkeys(kinds, 0.0)
    for row, count in zip(rows, times, strict=True):
        for kind, used in zip(kinds, row, strict=True):
            slots[kind] += used * count
    empty = sum(count for part, count in zip(parts, times, strict=True) if bundles.is_empty(part))
    return Work(float(sum(times)), float(empty), slots, unknown)


def _work(text: Path, usage: Path) -> Work:
    """The work of one operation in one run."""
    parts = bundles.split(text.read_text())
    kinds, rows = _usage(usage)
    return _sum(parts, rows, kinds, *bundles.executions(parts))


def _between(text: Path, usage: Path, runs: dict[str, float]) -> tuple[Work, set[str]]:
    """The work between the operations, and the names of the operations that are called.

    runs: how often each operation runs. The loops here are the program's; they turn as often as the operations run that
    they call.
    """
    parts = bundles.split(text.read_text())
    kinds, rows = _usage(usage)
    innermost: list[tuple[int, int] | None] = [None] * len(parts)
    for first, end, _ in bundles.loops(parts):
        innermost[first:end] = [(first, end)] * (end - first)
    turns: dict[tuple[int, int] | None, float] = collections.defaultdict(lambda: 1.0)
    called: set[str] = set()
    for loop, part in zip(innermost, parts, strict=True):
        for names in _CALL.findall(part):
            name = "".join(names)
            called.add(name)
            if loop is not None:
                turns[loop] = max(turns[loop], runs.get(name, 1.0))
    return _sum(parts, rows, kinds, [turns[loop] for loop in innermost], 0), called


def _version() -> str:
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "of an unknown version"
