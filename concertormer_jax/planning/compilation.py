"""The programs of a recipe, traced and compiled for devices that need not be there, and what the compiler says."""

import dataclasses
import multiprocessing
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from concertormer_jax.evaluation.sets import protocol_of_training
from concertormer_jax.inference.compiled import precision_for, restore_bytes
from concertormer_jax.inference.sharding import (
    ShardedNetwork,
    needs_sharding,
    row_mesh,
    row_sharding,
    shards_of,
)
from concertormer_jax.models import costs, parameter_shapes
from concertormer_jax.ops.image import padded_size
from concertormer_jax.ops.platform import single_device_kind, traced_for
from concertormer_jax.planning import chips, hlo, profile, schedule, schedule_report
from concertormer_jax.runtime.devices import batch_sharding, data_mesh, kind_of_single, replicated
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.schedule import make_phases, require_divisible
from concertormer_jax.training.setup import module_from, state_shapes, trace_step, training_from

_SIZE = r"([\d.]+[KMGT]?)"
_EXCEEDED = (  # libtpu's messages: on arguments and temporaries together, and on temporaries alone
    re.compile(rf"Used {_SIZE} of {_SIZE} \w+"),
    re.compile(rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_OPERATIONS = 10  # rows in the table of the schedule, unless more are asked for
_KINDS = {  # how the name of a program's argument begins, and the kind of its memory
    "state.params": "weights",
    "params": "weights",
    "state.optimizer": "optimiser",
    "state.average": "average of the weights",
    "state.step": "optimiser",
    "batch": "batch",
    "images": "batch",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One traced program. kind: "train", "evaluate" or "forward"; images: in each run, over all `devices` devices.

    steps: how often the recipe runs it, None if it does not say.
    """

    kind: str
    name: str
    images: int
    devices: int
    traced: jax.stages.Traced
    steps: int | None = None


def _placed(shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def training_phases(config):
    """The phases of `config.stages`."""
    return make_phases(config.stages.steps, config.stages.crop_px, config.stages.batch)


def require_trainable(config, devices: int) -> None:
    """Raise UserError, as the training itself does, for keys that make no sense and batches that do not divide."""
    phases = training_phases(config)
    training_from(config, phases)
    require_divisible(phases, devices, config.train.accumulation)


def training_task(config, mesh: Mesh, number: int) -> Task:
    """The training step of phase `number` (from 1), as `training.trainer` compiles it.

    Raises UserError when a phase's batch does not divide over the devices of `mesh`.
    """
    require_trainable(config, mesh.size)
    phases = training_phases(config)
    phase = phases[number - 1]
    training = training_from(config, phases)
    state = state_shapes(training, parameter_shapes(training.module), mesh)
    traced = trace_step(training, state, phase, mesh)
    name = f"phase {number} ({phase.crop_px} px x {phase.batch})"
    return Task("train", name, phase.batch, mesh.size, traced, phase.end - phase.start)


def evaluation_window(config, tlc: str) -> int | None:
    """Return the TLC window of the evaluation in pixels, None for no TLC. Arguments and errors as of `tlc_window`."""
    largest_crop_px = max(phase.crop_px for phase in training_phases(config))
    protocol = protocol_of_training(config.data.source)
    return protocol.tlc_window(tlc, largest_crop_px, module_from(config.model).multiple)


def evaluation_task(
    config, mesh: Mesh, width: int, height: int, tlc: str, shard: str = "off", memory_bytes: int = 0
) -> Task:
    """The restoration of one picture of width x height pixels on each device, in float32 as evaluate.py computes it.

    tlc: see `evaluation.scores.Protocol.tlc_window`; the protocol is that of the benchmark that is trained for. shard,
    memory_bytes: see `sharding.needs_sharding`; a picture that is split is restored by all devices together.
    """
    window = evaluation_window(config, tlc)
    module = module_from(config.model).clone(tlc_window=window, dtype=jnp.float32, remat=False)
    windows = "without TLC" if window is None else f"TLC windows of {window} px"
    what = f"{width}x{height}, {windows}, protocol {protocol_of_training(config.data.source).name}"
    if needs_sharding(shard, module, height, width, mesh.size, memory_bytes):
        with jax.default_matmul_precision(precision_for(module)):
            traced = _trace_sharded(restore_bytes, module, mesh, width, height, jnp.uint8)
        return Task("evaluate", f"evaluation ({what}, split over {mesh.size} devices)", 1, mesh.size, traced)
    whole, split = replicated(mesh), batch_sharding(mesh)
    shape = (mesh.size, padded_size(height, module.multiple), padded_size(width, module.multiple), 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)
    restore = jax.jit(restore_bytes(module), in_shardings=(whole, split), out_shardings=(split, split))
    with jax.default_matmul_precision(precision_for(module)), single_device_kind(kind_of_single(mesh)):
        traced = restore.trace(_placed(parameter_shapes(module), whole), images)
    return Task("evaluate", f"evaluation ({what})", mesh.size, mesh.size, traced)


def _trace_sharded(
    make: Callable[[Any], Callable], module: Any, mesh: Mesh, width: int, height: int, dtype: Any
) -> jax.stages.Traced:
    """Trace what `make` makes of a network, for one picture that is split over the devices of `mesh`."""
    mesh = row_mesh(list(mesh.devices.flat))
    network = ShardedNetwork(module, mesh, shards_of(height, module.multiple, mesh.size))
    shape = (1, network.padded_height, padded_size(width, module.multiple), 3)
    images = jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))
    return jax.jit(make(network)).trace(_placed(parameter_shapes(module), replicated(mesh)), images)


def forward_task(config, mesh: Mesh, width: int, height: int, shard: str = "off", memory_bytes: int = 0) -> Task:
    """The bare network on one float32 picture, without TLC and without gradients.

    On one device, or on all if the picture is split, as in `evaluation_task`.
    """
    module = module_from(config.model)

    def make(network: Any) -> Callable:
        def forward(params: Any, images: jax.Array) -> Any:
            return network.apply({"params": params}, images)[-1]

        return forward

    if needs_sharding(shard, module, height, width, mesh.size, memory_bytes):
        traced = _trace_sharded(make, module, mesh, width, height, jnp.float32)
        return Task("forward", f"forward ({width}x{height}, split over {mesh.size} devices)", 1, mesh.size, traced)
    first = Mesh(mesh.devices[:1], mesh.axis_names)
    one = replicated(first)
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32, sharding=one)
    with single_device_kind(kind_of_single(first)):
        traced = jax.jit(make(module)).trace(_placed(parameter_shapes(module), one), images)
    return Task("forward", f"forward ({width}x{height})", 1, 1, traced)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind between chips: `count` instructions, and the sums over them of runs and bytes received."""

    kind: str
    count: int
    times: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled program: the numbers of one run on one chip.

    reason: why it does not fit, None if it does; if it does not compile, the fields behind `reason` are empty.
    memory: bytes by kind; memory_total: their sum, or what the compiler would need; memory_limit: what a program may
    take, 0 if not known. products: FLOPs of matrix products and convolutions by their precision; bytes: read and
    written in any memory; hbm_bytes: in the device's main memory; cycles: the compiler's estimate, None if it gives
    none. Loops count as often as they run, except for `unknown_loops`, which count once. schedule: the compiler's final
    schedule, None unless asked for.
    """

    kind: str
    name: str
    images: int
    steps: int | None
    compile_s: float
    products: dict[str, float]
    memory_limit: int
    memory_total: int
    reason: str | None = None
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    program_bytes: int = 0
    bytes: float = 0.0
    hbm_bytes: float = 0.0
    cycles: float | None = None
    instructions: int = 0
    collectives: tuple[Collective, ...] = ()
    unknown_loops: tuple[str, ...] = ()
    tables: dict[str, list[profile.Row]] = dataclasses.field(default_factory=dict)
    schedule: schedule_report.Scheduled | None = None

    @property
    def fits(self) -> bool:
        """Whether the program fits into the memory."""
        return self.reason is None

    @property
    def flops(self) -> float:
        """The operations of all products and convolutions."""
        return sum(self.products.values())


def compile_apart(
    make: Callable[..., Task], config: Any, target: str, table_rows: int = 0, with_schedule: bool = False
) -> Plan:
    """Compile what `make(config, mesh)` traces for the devices of `target`, in a process of its own.

    The compiler keeps gigabytes for every program, which the system takes back when the process ends. If the caller
    stops waiting, the process ends too. make, config: can be pickled. with_schedule: read the final schedule, of a TPU,
    which libtpu writes to a temporary folder. Raises UserError when the process was killed, and when libtpu does not
    write its schedule.
    """
    context = multiprocessing.get_context("spawn")  # a forked process may hang, since JAX has threads
    with tempfile.TemporaryDirectory(prefix="schedule-") as folder:
        dump = Path(folder) if with_schedule else None
        answers, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, make, config, target, table_rows, dump), daemon=True)
        # Ctrl-C reaches both processes. The new one inherits the mask and ignores it; this one gets it after the start.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            theirs.close()
            plan, error = answers.recv()
        except EOFError as end:
            if dump and not any(dump.iterdir()):  # libtpu kills the process at a flag that it does not know
                raise schedule.refused() from end
            raise UserError(
                f"the compiler for {target} was killed, most likely because this machine has too little memory; "
                "close other programs, or plan one part with --only"
            ) from end
        finally:
            process.kill()
            process.join()
    if error is not None:
        raise error
    return plan


def _answer(connection: Connection, *arguments: Any) -> None:
    """Send (what `_compile_for` returns, None), or (None, the exception that it raises)."""
    try:
        answer = _compile_for(*arguments), None
    except Exception as error:
        answer = None, error
    connection.send(answer)


def _compile_for(make: Callable[..., Task], config: Any, name: str, table_rows: int, dump: Path | None = None) -> Plan:
    jax.config.update("jax_enable_compilation_cache", False)  # since the plan states the seconds of compiling
    if dump:
        schedule.request(dump)
    target = chips.target(name)
    with traced_for(target.devices[0].platform):
        task = make(config, data_mesh(target.devices))
    return compile_task(task, target.chip.memory_bytes, table_rows, dump, target.compiler_options)


def compile_task(
    task: Task,
    memory_limit: int,
    table_rows: int = 0,
    dump: Path | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> Plan:
    """Compile `task` for chips with `memory_limit` bytes (0: not known). The plan says so if it is too large for them.

    table_rows: the most rows of the tables of where the cycles go; 0 for no tables. dump: the folder that was given to
    `schedule.request`. compiler_options: of XLA, by name.
    """
    products = costs.flops_by_precision(task.traced.jaxpr)
    products = {precision: flops / task.devices for precision, flops in products.items()}
    plan = partial(Plan, kind=task.kind, name=task.name, images=task.images, steps=task.steps, products=products)
    start = time.perf_counter()
    try:
        compiled = task.traced.lower().compile(compiler_options or {})
    except jax.errors.JaxRuntimeError as error:
        needed = too_large(str(error))
        if needed is None:
            raise
        reason, used, available = needed
        seconds = time.perf_counter() - start
        return plan(compile_s=seconds, memory_limit=available, memory_total=used, reason=reason)
    seconds = time.perf_counter() - start
    statistics = compiled.memory_analysis()
    text = compiled.as_text()
    program = hlo.parse(text)
    runs, unknown = hlo.executed(program)
    memory = _memory(program, statistics)
    total = sum(memory.values())
    estimated = [run.times * run.instruction.cycles for run in runs if run.instruction.cycles is not None]
    short = memory_limit and total > memory_limit
    return plan(
        compile_s=seconds,
        memory_limit=memory_limit,
        memory_total=total,
        reason=f"it needs {total / 2**30:.2f} GiB of {memory_limit / 2**30:.2f} GiB" if short else None,
        memory=memory,
        program_bytes=statistics.generated_code_size_in_bytes,
        bytes=sum(run.times * run.bytes for run in runs),
        hbm_bytes=sum(run.times * run.hbm_bytes for run in runs),
        cycles=sum(estimated) if estimated else None,
        instructions=len(runs),
        collectives=_collectives(program, runs),
        unknown_loops=tuple(unknown),
        tables=profile.tables(program, runs, table_rows) if table_rows else {},
        schedule=_scheduled(dump, program, runs, table_rows) if dump else None,
    )


def _scheduled(
    dump: Path, program: hlo.Program, runs: list[hlo.Executed], table_rows: int
) -> schedule_report.Scheduled:
    return schedule_report.summed(program, runs, schedule.read(dump, program, runs), table_rows or _OPERATIONS)


def too_large(message: str) -> tuple[str, int, int] | None:
    """Parse the compiler's message: (a sentence, bytes needed, bytes available), None if it is not about memory.

    Bytes that the message does not say are 0.
    """
    _, found, text = message.partition("RESOURCE_EXHAUSTED: ")
    if not found:
        return None
    sentence = text.strip().splitlines()[0].rstrip(".")
    for pattern in _EXCEEDED:
        sizes = pattern.search(text)
        if sizes:
            return sentence, _bytes_of(sizes[1]), _bytes_of(sizes[2])
    return sentence, 0, 0


def _bytes_of(size: str) -> int:
    """The bytes of a size such as 15.48G."""
    return int(float(size.rstrip("KMGT")) * _UNITS[size.lstrip("0123456789.")])


def _memory(program: hlo.Program, statistics: Any) -> dict[str, int]:
    """Bytes on each chip by kind. An argument that is donated to a result counts once."""
    kinds = Counter()
    for instruction in program.computations[program.entry].instructions.values():
        if instruction.opcode == "parameter":
            start = re.match(r"\w+(\.\w+)?", instruction.scope)
            kind = _KINDS.get(start.group(0) if start else "", "other arguments")
            kinds[kind] += sum(shape.bytes for shape in instruction.shapes)
    kinds["activations and temporaries"] = statistics.temp_size_in_bytes
    kinds["results"] = statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    kinds["program"] = statistics.generated_code_size_in_bytes
    return {kind: int(size) for kind, size in kinds.items() if size > 0}


def _collectives(program: hlo.Program, runs: list[hlo.Executed]) -> tuple[Collective, ...]:
    found = {}
    for run in runs:
        for instruction in hlo.collectives(program, run.instruction):
            kind = instruction.opcode.removesuffix("-start")
            count, times, size = found.get(kind, (0, 0.0, 0.0))
            each = sum(shape.bytes for shape in instruction.shapes)
            found[kind] = count + 1, times + run.times, size + run.times * each
    return tuple(Collective(kind, *values) for kind, values in sorted(found.items()))
