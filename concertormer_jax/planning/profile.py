"""Where the cycles and bytes of a program go, by the compiler's estimates: tables by kind, stage, place and line."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable

from concertormer_jax.planning import hlo

_MOVING = {"bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "copy", "dynamic-slice", "pad"}
_MOVING |= {"dynamic-update-slice", "iota", "maximum", "parameter", "reshape", "slice", "transpose", "tuple", "gather"}
# Transformations that JAX writes around the names of modules.
_WRAPPERS = re.compile(r"\b(jit|jvp|transpose|vmap|remat|checkpoint|rematted_computation)\(([^()]*)\)")
_FUNCTION = re.compile(r"\bjit\([^()]*\)/?")
_EXPRESSION = re.compile(r"[.,;]|->")  # occurs in the names of einsums, but not of modules
_STAGE = re.compile(r"(.*?\b(?:encoders_\d+|middle|decoders_\d+|refinement))(?:/(.*)|$)")
_PACKAGE = __name__.partition(".")[0]
_FILLERS = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: `count` instructions, and the sums over them of runs, cycles and bytes."""

    name: str
    count: int
    times: float
    cycles: float
    bytes: float
    hbm_bytes: float


def kind(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """Return the operation of an instruction, and of a fusion what it mainly does: convolution, reduce, moving, ...

    Matrix products are convolutions. Moving is to change layouts, slice, pad and concatenate (by a maximum).
    """
    if instruction.opcode != "fusion":
        return instruction.opcode
    inside = {i.opcode for i in program.computations[instruction.called["calls"]].instructions.values()}
    for opcode in ("convolution", "dot", "fft", "scatter"):
        if opcode in inside:
            return f"fusion: {opcode}"
    if inside <= _MOVING:
        return "fusion: moving"
    return "fusion: reduce" if "reduce" in inside else "fusion: elementwise"


def place(scope: str) -> str:
    """Return JAX's name of an operation without loops and transformations, with "backward " before it for gradients."""
    backward = "transpose(" in scope
    while _WRAPPERS.search(scope):
        scope = _WRAPPERS.sub(r"\2", scope)
    parts = [part for part in scope.split("/") if part not in _FILLERS and not part.endswith(".apply")]
    return ("backward " if backward else "") + "/".join(parts[1:])


def tables(program: hlo.Program, runs: list[hlo.Executed], top: int) -> dict[str, list[Row]]:
    """Return tables of at most `top` rows by kind, stage, place, line of this package, and instruction.

    The rows are sorted by cycles, and without estimates by bytes.
    """
    groups = {
        "kind": lambda run: kind(program, run.instruction),
        "stage": lambda run: _stage_and_rest(run)[0],
        "place, stages together": lambda run: _stage_and_rest(run)[1],
        "line": lambda run: _line(program, run),
        "instruction": lambda run: description(program, run),
    }
    return {name: _grouped(runs, key)[:top] for name, key in groups.items()}


def description(program: hlo.Program, run: hlo.Executed) -> str:
    """Return an instruction's name, kind, shape and place."""
    shape = run.instruction.shapes[0]
    size = f"{shape.dtype}[{','.join(map(str, shape.dims))}]{{{shape.layout}}}"
    where = place(run.instruction.scope)
    return f"{run.instruction.name} ({kind(program, run.instruction)}) {size} {where}"


def stage_and_part(run: hlo.Executed) -> tuple[str, str]:
    """Return the stage of the network and the module in it of an operation: ("Concertormer/middle", "blocks/norm")."""
    scope = _FUNCTION.sub("", run.instruction.scope)
    *modules, _ = place(f"jit(_)/{scope}").split("/")
    path = "/".join(module for module in modules if not _EXPRESSION.search(module))
    if not run.instruction.scope:
        return "(added by the compiler)", f"({run.instruction.opcode})"
    stage = _STAGE.match(path)
    return (stage.group(1), stage.group(2) or "(stage)") if stage else ("(other)", path or "(other)")


def _line(program: hlo.Program, run: hlo.Executed) -> str:
    """The innermost line of this package that the operation came from."""
    frames = program.sources.get(run.instruction.frame, ()) if run.instruction.frame is not None else ()
    lines = [line for line in frames if f"/{_PACKAGE}/" in line]
    return lines[-1].rpartition(f"/{_PACKAGE}/")[2] if lines else "(other)"


def _stage_and_rest(run: hlo.Executed) -> tuple[str, str]:
    """The stage of an operation and its place in the stage: ("Concertormer/middle", "blocks/norm/add")."""
    where = place(run.instruction.scope)
    if not where:
        return "(added by the compiler)", f"({run.instruction.opcode})"
    found = _STAGE.match(where)
    return (found.group(1), found.group(2)) if found and found.group(2) else ("(other)", where)


def _grouped(runs: Iterable[hlo.Executed], key: Callable[[hlo.Executed], str]) -> list[Row]:
    found = collections.defaultdict(list)
    for run in runs:
        found[key(run)].append(run)
    rows = [
        Row(
            name,
            len(group),
            sum(run.times for run in group),
            sum(run.times * (run.instruction.cycles or 0) for run in group),
            sum(run.times * run.bytes for run in group),
            sum(run.times * run.hbm_bytes for run in group),
        )
        for name, group in found.items()
    ]
    return sorted(rows, key=lambda row: (row.cycles, row.bytes), reverse=True)
