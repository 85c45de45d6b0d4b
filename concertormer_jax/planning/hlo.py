"""Compiled programs as text (HLO): a parser, and what runs how often, with the bytes it moves and its costs."""

import dataclasses
import math
import re
from collections.abc import Iterator

_ITEM_BITS = re.compile(r"[a-z]+(\d+)")
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'metadata=\{[^}]*op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)
_CONTROL = ("while", "conditional", "call")
_SLICES = ("slice", "dynamic-slice", "gather")
_WITH_WORKSPACE = re.compile(r'custom_call_target="__cu(?:blas|dnn)')  # calls whose last result is working memory


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its element type, the lengths of its axes, and the layout as the compiler writes it."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """The size in memory, including the padding to the layout's tiles."""
        order, _, rest = self.layout.partition(":")
        dims = [self.dims[int(axis)] for axis in order.split(",") if axis] if order else list(self.dims[::-1])
        tile = re.match(r"T\(([\d,]+)\)", rest)
        for position, length in enumerate(reversed(tile.group(1).split(",")) if tile else ()):
            if position < len(dims):
                dims[position] = -(-dims[position] // int(length)) * int(length)
        bits = _ITEM_BITS.match(self.dtype)
        return math.prod(dims) * max(8, int(bits.group(1)) if bits else 8) // 8

    @property
    def on_chip(self) -> bool:
        """Whether it lies in another memory than the device's main one (on a TPU: VMEM, SMEM)."""
        return re.search(r"S\([1-9]", self.layout) is not None


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction. shapes: of the result, or of the parts of a tuple; operands: names of other instructions;
    text: between the parentheses behind the opcode; attributes: the text behind them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    attributes: str

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, None if it gives none."""
        found = _CYCLES.search(self.attributes)
        return int(found.group(1)) if found else None

    @property
    def scope(self) -> str:
        """JAX's name of the operation that it stems from, such as "jit(f)/Concertormer/middle/while/body/add"."""
        found = _OP_NAME.search(self.attributes)
        return found.group(1) if found else ""

    @property
    def frame(self) -> int | None:
        """The number of the stack frame that it stems from."""
        found = _FRAME.search(self.attributes)
        return int(found.group(1)) if found else None

    @property
    def called(self) -> dict[str, str]:
        """The computations that it calls, by the name of the attribute; branches are numbered."""
        called = dict(_CALLED.findall(self.attributes))
        branches = _BRANCHES.search(self.attributes)
        if branches:
            called |= {f"branch_{i}": name for i, name in enumerate(_NAME.findall(branches.group(1)))}
        return called


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text; root: the name of the result."""

    instructions: dict[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name; entry: the name of the one that runs.

    sources: number of a stack frame to its lines as "path:line", from the outermost to the innermost.
    """

    computations: dict[str, Computation]
    entry: str
    sources: dict[int, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs `times` times, and the bytes that it reads and writes each time.

    bytes: in any memory; hbm_bytes: in the device's main memory.
    """

    instruction: Instruction
    times: float
    bytes: int
    hbm_bytes: int


def parse(text: str) -> Program:
    """Parse `compiled.as_text()`. Raises ValueError for a text without an entry computation."""
    computations: dict[str, Computation] = {}
    body: dict[str, Instruction] = {}
    entry, name, root = None, None, ""
    for line in text.splitlines():
        if name is None:
            header = _COMPUTATION.match(line)
            if header:
                name, body, root = header.group(2), {}, ""
                entry = name if header.group(1) else entry
        elif line.startswith("}"):
            computations[name] = Computation(body, root)
            name = None
        else:
            start = _INSTRUCTION.match(line)
            if start:
                instruction = _instruction(start.group(2), line[start.end() :])
                body[instruction.name] = instruction
                root = instruction.name if start.group(1) else root
    if entry is None:
        raise ValueError("the text of the program has no entry computation")
    return Program(computations, entry, _sources(text))


def _sources(text: str) -> dict[int, tuple[str, ...]]:
    """Parse the tables of files, locations and stack frames at the beginning of the text; {} if there are none."""

    def table(title: str) -> dict[int, str]:
        found = re.search(rf"^{title}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
        lines = found.group(1).splitlines() if found else []
        return {int(number): rest for number, _, rest in (line.partition(" ") for line in lines)}

    def number(entry: str, key: str) -> int:
        return int(re.findall(rf"\b{key}=(\d+)", entry)[0])

    files = {key: name.strip('"') for key, name in table("FileNames").items()}
    locations = {
        key: f"{files[number(entry, 'file_name_id')]}:{number(entry, 'line')}"
        for key, entry in table("FileLocations").items()
    }
    frames: dict[int, tuple[str, ...]] = {}
    for key, entry in table("StackFrames").items():  # parents come first; the text has their numbers plus one
        parents = frames.get(number(entry, "parent_frame_id") - 1, ())
        frames[key] = (*parents, locations[number(entry, "file_location_id")])
    return frames


def _balanced(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return len(text)


def _instruction(name: str, text: str) -> Instruction:
    end = _balanced(text, 0) if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), layout or "")
        for dtype, dims, layout in _SHAPE.findall(text[:end])
    )
    left = text.index("(", end)
    right = _balanced(text, left)
    inside = text[left + 1 : right - 1]
    opcode = text[end:left].strip()
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inside))
    return Instruction(name, opcode, shapes, operands, inside, text[right:])


def executed(program: Program) -> tuple[list[Executed], list[str]]:
    """Return the instructions that run, loops multiplied by their trip counts, and the loops of unknown trip count.

    Loops of unknown trip count run once, and each branch of a conditional an equal share of the time. The instructions
    in a fusion are part of it.
    """
    unknown: list[str] = []

    def walk(name: str, times: float) -> Iterator[Executed]:
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode in _FREE:
                continue
            called = instruction.called
            if instruction.opcode == "while":
                trips = trip_count(program, computation, instruction)
                if trips is None:
                    unknown.append(instruction.name)
                yield from walk(called["body"], times * (1 if trips is None else trips))
            elif instruction.opcode in _CONTROL:
                for branch in called.values():
                    yield from walk(branch, times / len(called))
            else:
                everywhere, hbm = accessed(program, computation, instruction)
                yield Executed(instruction, times, everywhere, hbm)

    return list(walk(program.entry, 1.0)), unknown


def collectives(program: Program, instruction: Instruction) -> list[Instruction]:
    """Return the exchanges between devices in an instruction: itself, or those in a fusion or an asynchronous call."""
    if instruction.opcode.removesuffix("-start") in _COLLECTIVES:
        return [instruction]
    if instruction.opcode not in ("fusion", "async-start"):
        return []
    inside = program.computations[instruction.called["calls"]].instructions.values()
    return [found for inner in inside for found in collectives(program, inner)]


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Return how often the `while` instruction of `computation` runs its body, None if that is not known.

    It is known if the compiler states it, or if the loop counts from a constant to a constant in constant steps.
    """
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known.group(1))
    condition = program.computations[loop.called["condition"]]
    body = program.computations[loop.called["body"]]
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or _DIRECTION.findall(test.attributes) != ["LT"]:
        return None
    counter = _source(condition, test.operands[0])
    limit = _constant(condition, test.operands[1])
    if counter.opcode != "get-tuple-element" or limit is None:
        return None
    index = int(_INDEX.findall(counter.attributes)[0])
    start, end = _source(computation, loop.operands[0]), body.instructions[body.root]
    if start.opcode != "tuple" or end.opcode != "tuple":
        return None
    first = _constant(computation, start.operands[index])
    update = _source(body, end.operands[index])
    steps = [_constant(body, operand) for operand in update.operands]
    steps = [step for step in steps if step is not None]
    if first is None or update.opcode != "add" or len(steps) != 1:
        return None
    return max(0, -(-(limit - first) // steps[0]))


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction whose value the instruction `name` passes on unchanged."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(computation: Computation, name: str) -> int | None:
    source = _source(computation, name)
    return int(source.text) if source.opcode == "constant" and re.fullmatch(r"-?\d+", source.text) else None


def accessed(program: Program, computation: Computation, instruction: Instruction) -> tuple[int, int]:
    """Return the bytes that an instruction reads and writes: (in any memory, in the device's main memory).

    Of an operand that is only sliced, also in a fusion, the slices count; of one that is updated in place, the update.
    The working memory of GPU libraries does not count, since it is not known how much of it they use.
    """
    if instruction.opcode.endswith(("-done", "-update")):
        return 0, 0  # counted where it was started
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode == "fusion":
        body = program.computations[instruction.called["calls"]]
        parameters = {int(i.text): i for i in body.instructions.values() if i.opcode == "parameter"}
        parts = [
            (operand.shapes[0], _read(body, parameters[number].name, operand.shapes[0].bytes))
            for number, operand in enumerate(operands)
            if operand.shapes and number in parameters
        ]
        parts += _written(body, instruction)
    elif instruction.opcode in _SLICES:
        result = instruction.shapes[0]
        parts = [(operands[0].shapes[0], result.bytes), (result, result.bytes)]
    elif instruction.opcode == "dynamic-update-slice":
        update = operands[1].shapes[0]
        parts = [(update, update.bytes), (instruction.shapes[0], update.bytes)]
    elif instruction.opcode.endswith("-start"):
        # The tuple holds (result, operand, context) for a copy, (operands, results, context) for most others.
        first = 0 if instruction.opcode == "copy-start" else len(operands)
        result = instruction.shapes[first : first + len(operands)] or instruction.shapes
        parts = [(s, s.bytes) for s in result] + [
            (o.shapes[0], min(o.shapes[0].bytes, sum(s.bytes for s in result))) for o in operands if o.shapes
        ]
    else:
        results = instruction.shapes
        if len(results) > 1 and _WITH_WORKSPACE.search(instruction.attributes):
            results = results[:-1]
        parts = [(s, s.bytes) for o in operands for s in o.shapes] + [(s, s.bytes) for s in results]
    return sum(size for _, size in parts), sum(size for shape, size in parts if not shape.on_chip)


def _users(body: Computation, name: str) -> list[Instruction]:
    return [instruction for instruction in body.instructions.values() if name in instruction.operands]


def _read(body: Computation, name: str, whole: int) -> int:
    """Bytes that a fused computation reads of its parameter `name`, whose size is `whole`."""
    total = 0
    for user in _users(body, name):
        if user.opcode in _SLICES and user.operands[0] == name:
            total += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode == "bitcast":
            total += _read(body, user.name, whole)
        else:
            return whole
    return min(whole, total)


def _written(body: Computation, fusion: Instruction) -> list[tuple[Shape, int]]:
    """The results of a fusion and the bytes that it writes of each."""
    root = _source(body, body.root)
    results = [_source(body, name) for name in root.operands] if root.opcode == "tuple" else [root]
    sizes = []
    for result, shape in zip(results, fusion.shapes, strict=False):
        if result.opcode == "dynamic-update-slice":
            sizes.append((shape, body.instructions[result.operands[1]].shapes[0].bytes))
        else:
            sizes.append((shape, shape.bytes))
    return sizes
