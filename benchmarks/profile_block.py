"""Where the time goes: by part of the block, by stage of the network, and by kind of operation.

    python -m benchmarks.profile_block --task=forward
    python -m benchmarks.profile_block --task=train --variant=lite --size=128 --output=runs/profile/after

Runs the compiled program several times under JAX's profiler and adds up the time of its operations, of each execution
the least, since what else the machine does only ever adds time. An operation belongs to the part whose name
(`jax.named_scope`, or a module's) stands last in its path; an operation that XLA fused of several counts where its last
one stands, and one that it left without a name where its operands come from. Times are summed over the threads, so on a
CPU they can exceed the seconds that passed; the shares are what matters. Writes profile.json and profile.md to
--output.
"""

import argparse
import collections
import datetime
import functools
import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from tqdm import tqdm

from benchmarks import report
from benchmarks.jax_worker import task_of
from benchmarks.jobs import make_job, write_weights
from benchmarks.machine import processor
from concertormer_jax.models import VARIANTS
from concertormer_jax.runtime import errors, files

PARTS = {
    "norm": "layer norm",
    "norm2": "layer norm",
    "projections": "projections",
    "ripieno_spatial": "Ripieno, spatial",
    "ripieno_channel": "Ripieno, channel",
    "concertino_channel": "Concertino, channel",
    "concertino_spatial": "Concertino, spatial",
    "cdc": "communication (CDC)",
    "sca": "channel attention (SCA)",
    "gdmlp": "gdMLP",
}
REST_OF_BLOCK, OUTSIDE = "rest of the block", "outside the blocks"
STAGES = re.compile(r"(encoders|decoders|intros|downs|ups|endings)_\d+|middle|intro|ending")
CONTAINERS = ("while", "call", "conditional")  # the operations inside are counted, these are not
WITHOUT_ORIGIN = ("parameter", "get-tuple-element")
SHOWN_KINDS = 15


class Operation(NamedTuple):
    """One instruction of a compiled program: its name, what it computes, and its path in the source."""

    name: str
    opcode: str
    path: str


def operations(program_text: str) -> dict[str, Operation]:
    """The instructions of a compiled program's text, by name."""
    found, operands = {}, {}
    for line in program_text.splitlines():
        instruction = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(([^)]*)", line)
        if instruction:
            path = re.search(r'op_name="([^"]*)"', line)
            name, opcode, arguments = instruction.groups()
            found[name] = Operation(name, opcode, path.group(1) if path else "")
            operands[name] = re.findall(r"%([\w.-]+)", arguments)

    @functools.cache
    def path_of(name):
        operation = found.get(name)
        if operation is None or operation.opcode in WITHOUT_ORIGIN:
            return ""
        return operation.path or next(filter(None, map(path_of, operands[name])), "")

    return {name: operation._replace(path=path_of(name)) for name, operation in found.items()}


def part_of(path: str) -> str:
    """The part of the block that an operation's path ends in."""
    names = re.findall(r"\w+", path)
    for name in reversed(names):
        if name in PARTS:
            return PARTS[name]
    return REST_OF_BLOCK if "blocks" in names else OUTSIDE


def stage_of(path: str) -> str:
    """The stage of the network in an operation's path, or what stands outside of it: loss and optimiser."""
    names = re.findall(r"\w+", path)
    return next((name for name in names if STAGES.fullmatch(name)), "outside the stages")


def kind_of(operation: Operation) -> str:
    """The operation's code; of a fusion, the name that XLA gave it for what it holds."""
    return re.sub(r"[.\d]+$", "", operation.name) if operation.opcode == "fusion" else operation.opcode


def shares(durations: Iterable[tuple[Operation, float]], key) -> list[tuple[str, float]]:
    """(group, summed duration) of the operations, largest first; `key` gives an operation's group."""
    total = collections.Counter()
    for operation, duration in durations:
        total[key(operation)] += duration
    return total.most_common()


def traced_durations(folder: Path, known: dict[str, Operation]) -> dict[str, list[float]]:
    """The seconds of every execution, in order, of the known operations in the trace that JAX wrote to `folder`."""
    (trace,) = folder.glob("**/*.xplane.pb")
    found = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                # On a GPU the event is a kernel, which names its operation.
                name = dict(event.stats).get("hlo_op", event.name) if plane.name.startswith("/device") else event.name
                if name in known and known[name].opcode not in CONTAINERS:
                    found[name].append((event.start_ns, event.duration_ns / 1e9))
    return {name: [seconds for _, seconds in sorted(executions)] for name, executions in found.items()}


def least_durations(calls: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """The seconds of each operation in one call: the sum over its executions of the least in any of `calls`.

    Calls in which an operation has fewer executions than in others are left out, as the profiler may miss some.
    """
    seconds = {}
    for name in set().union(*calls):
        executions = [call.get(name, []) for call in calls]
        most = max(map(len, executions))
        seconds[name] = sum(map(min, zip(*(one for one in executions if len(one) == most), strict=True)))
    return seconds


def page(record: dict) -> str:
    """The Markdown page of a profile as `main` records it."""
    text = f"{record['title']}; {record['date']}, {record['processor']}. One call takes {record['call_s']:.3f} s; its "
    text += f"operations take {record['operations_s']:.3f} s together, summed over the threads, each the least of "
    text += f"{record['repetitions']} calls.\n"
    for heading, groups in record["groups"].items():
        rows = [
            [name, f"{1000 * seconds:.1f}", f"{100 * seconds / record['operations_s']:.1f} %"]
            for name, seconds in groups[:SHOWN_KINDS]
        ]
        text += "\n" + report.markdown_table([heading, "ms", "share"], rows)
    return text


def _seconds_of_a_call(task) -> float:
    start = time.perf_counter()
    task.run()
    task.wait()
    return time.perf_counter() - start


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_block",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", default="forward", choices=["forward", "train"])
    parser.add_argument("--variant", default="lite", choices=list(VARIANTS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5, help="calls of which each operation's least time counts")
    parser.add_argument("--output", type=Path, default=Path("runs/profile"), help="folder for the results")
    flags = parser.parse_args(arguments)
    with errors.reported(), tempfile.TemporaryDirectory(prefix="profile-") as folder:
        if flags.repetitions < 1:
            raise errors.UserError(f"--repetitions={flags.repetitions}: must be at least 1")
        write_weights(flags.variant, Path(folder))
        task = task_of(
            make_job(
                Path(folder),
                variant=flags.variant,
                dtype=flags.dtype,
                device=jax.default_backend(),
                batch=flags.batch,
                height=flags.size,
                width=flags.size,
                train=flags.task == "train",
            )
        )
        known = operations(task.program.as_text())
        _seconds_of_a_call(task)  # warms up
        call_s, calls = math.inf, []
        for number in tqdm(range(flags.repetitions), unit="call", leave=False):
            call_s = min(call_s, _seconds_of_a_call(task))
            with jax.profiler.trace(Path(folder, str(number))):
                _seconds_of_a_call(task)
            calls.append(traced_durations(Path(folder, str(number)), known))
        durations = [(known[name], seconds) for name, seconds in least_durations(calls).items()]
        if not durations:
            raise errors.UserError(f"the profiler named no operation of the program on {task.describe()['device']}.")
        name = {"forward": "forward", "train": "training step"}[flags.task]
        record = {
            "title": f"{flags.variant}, {name}, {flags.batch} x {flags.size}x{flags.size}, {flags.dtype}, "
            f"{task.describe()['device']}",
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "versions": task.describe()["versions"],
            "repetitions": flags.repetitions,
            "call_s": call_s,
            "operations_s": sum(seconds for _, seconds in durations),
            "groups": {
                "part of the block": shares(durations, lambda operation: part_of(operation.path)),
                "stage": shares(durations, lambda operation: stage_of(operation.path)),
                "kind of operation": shares(durations, kind_of),
            },
        }
        files.write_text(flags.output / "profile.json", json.dumps(record, indent=2) + "\n")
        files.write_text(flags.output / "profile.md", page(record))
        print(page(record))


if __name__ == "__main__":
    main()
