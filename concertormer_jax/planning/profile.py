"""Where the compiler expects the cycles of a program to go."""

import collections
import dataclasses
import re

from concertormer_jax.planning import hlo

_MOVING = {"bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "copy", "dynamic-slice", "pad"}
_MOVING |= {"dynamic-update-slice", "iota", "maximum", "parameter", "reshape", "slice", "transpose", "tuple", "gather"}
# What JAX puts between the names of modules and the name of the operation.
_WRAPPERS = re.compile(r"\b(jit|jvp|transpose|vmap|remat|checkpoint|rematted_computation)\(([^()]*)\)")
_FUNCTION = re.compile(r"\bjit\([^()]*\)/?")
_EXPRESSION = re.compile(r"[.,;]|->")  # not the name of a module
_STAGE = re.compile(r"(.*?\b(?:encoders_\d+|middle|decoders_\d+|refinement))(?:/(.*)|$)")
_PACKAGE = __name__.partition(".")[0]
_FILLERS = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: count instructions that run `times` in all, with their cycles and bytes in all."""

    name: str
    count: int
    times: float
    cycles: float
    bytes: float
    hbm_bytes: float


def kind(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """The instruction's operation; of a fusion, what it contains: convolution (products too), reduce, moving or other.

    Moving is the changing of layouts, slicing, padding and joining (which the compiler writes as a maximum).
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
    """JAX's name of an operation without what stands for loops and transformations; "backward " is put before it."""
    backward = "transpose(" in scope
    while _WRAPPERS.search(scope):
        scope = _WRAPPERS.sub(r"\2", scope)
    parts = [part for part in scope.split("/") if part not in _FILLERS and not part.endswith(".apply")]
    return ("backward " if backward else "") + "/".join(parts[1:])


def tables(program: hlo.Program, runs: list[hlo.Executed], top: int = 30) -> dict[str, list[Row]]:
    """At most `top` rows by kind, stage, place, line of this package and single instruction.

    They are sorted by cycles and, where there is no estimate, by bytes.
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
    """An instruction's name, kind, shape and place."""
    shape = run.instruction.shapes[0]
    size = f"{shape.dtype}[{','.join(map(str, shape.dims))}]{{{shape.layout}}}"
    where = place(run.instruction.scope)
    return f"{run.instruction.name} ({kind(program, run.instruction)}) {size} {where}"


def stage_and_part(run: hlo.Executed) -> tuple[str, str]:
    """The network's stage and the module in it of an operation: ("Concertormer/middle", "blocks/norm")."""
    scope = _FUNCTION.sub("", run.instruction.scope)
    *modules, _ = place(f"jit(_)/{scope}").split("/")
    path = "/".join(module for module in modules if not _EXPRESSION.search(module))
    if not run.instruction.scope:
        return "(added by the compiler)", f"({run.instruction.opcode})"
    stage = _STAGE.match(path)
    return (stage.group(1), stage.group(2) or "(stage)") if stage else ("(other)", path or "(other)")


def _line(program, run) -> str:
    """The innermost line of this package that the operation came from."""
    lines = [line for line in program.sources.get(run.instruction.frame, ()) if f"/{_PACKAGE}/" in line]
    return lines[-1].rpartition(f"/{_PACKAGE}/")[2] if lines else "(other)"


def _stage_and_rest(run) -> tuple[str, str]:
    """Split the place of an operation behind the network's stage: ("Concertormer/middle", "blocks/norm/add")."""
    where = place(run.instruction.scope)
    if not where:
        return "(added by the compiler)", f"({run.instruction.opcode})"
    found = _STAGE.match(where)
    return (found.group(1), found.group(2)) if found and found.group(2) else ("(other)", where)


def _grouped(runs, key) -> list[Row]:
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
