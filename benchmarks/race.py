"""Race this project against plain PyTorch on this machine.

    python -m benchmarks.race --torch-python=PEER_ENV/bin/python
    python -m benchmarks.race --torch-python=PEER_ENV/bin/python --device=gpu --dtype=bfloat16 --compile

Each side is a process of its own with the same weights and images. The sides take turns, repetition by repetition, and
the ratio is taken within each turn. Every task starts fresh processes, so that peak memory and the time to the first
result are its own. Writes race.json and race.md to --output, and prints the latter. Nothing else should run meanwhile.
"""

import argparse
import contextlib
import datetime
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import report
from benchmarks.jobs import environment, make_job, write_onnx, write_weights
from benchmarks.machine import processor, use_cores
from benchmarks.report import OURS
from benchmarks.sides import Side
from concertormer_jax.models import VARIANTS, Concertormer
from concertormer_jax.runtime import errors, files
from concertormer_jax.runtime.errors import UserError

PEERS = [name for name, variant in VARIANTS.items() if variant.network is Concertormer]  # what the peer implements
EAGER, COMPILED, ONNX = "PyTorch eager", "torch.compile", "ONNX Runtime"
LEAST_REPETITION_S = 0.3  # a repetition has as many calls as take this long
TLC_WINDOW_PX = 448  # GoPro's
# height, width of the images; whether a window of the test-time local converter is set; whether it is a training step
TASKS = {
    "forward": ((256, 256), False, False),
    "tlc": ((720, 1280), True, False),
    "train": ((128, 128), False, True),
}


def flags_of(arguments=None) -> argparse.Namespace:
    """Parse the command line; raises UserError for values that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, help="Python that has PyTorch (default: this one)")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="may be repeated; default: all")
    parser.add_argument("--variant", default="lite", choices=PEERS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part too")
    parser.add_argument(
        "--onnx", action="store_true", help="ONNX Runtime takes part too, in the forward pass of one float32 picture"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, help="cores that each side may use (default: all)")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--size", type=int, help="side of the images in pixels, in place of 256 (forward), 128 (train)")
    parser.add_argument(
        "--once", action="store_true", help="no extra start of ours that fills the compilation cache: quicker"
    )
    parser.add_argument(
        "--peer-windows",
        choices=["together", "singly"],
        help="how eager PyTorch computes TLC windows (default: together on a GPU, singly on a CPU)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/race"), help="folder for race.json and race.md")
    flags = parser.parse_args(arguments)
    for name in ("repetitions", "threads", "batch"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: must be at least 1.")
    if flags.size is not None and (flags.size < 64 or flags.size % 64):
        raise UserError(f"--size={flags.size}: must be a positive multiple of 64 pixels.")
    if flags.onnx and (flags.device, flags.dtype, flags.batch) != ("cpu", "float32", 1):
        raise UserError("--onnx: the exported file is for one float32 picture on a CPU; leave out what says otherwise.")
    flags.task = flags.task or list(TASKS)
    flags.peer_windows = flags.peer_windows or {"gpu": "together", "cpu": "singly"}[flags.device]
    return flags


def race(flags, task: str, folder: Path, cores: int) -> dict:
    """Run one task on all sides. Returns what report.race_tables reads of it."""
    (height, width), with_tlc, train = TASKS[task]
    if flags.size and not with_tlc:
        height = width = flags.size
    job = make_job(
        folder,
        variant=flags.variant,
        dtype=flags.dtype,
        device=flags.device,
        batch=flags.batch,
        height=height,
        width=width,
        tlc_window=TLC_WINDOW_PX if with_tlc else None,
        train=train,
    )
    peer = {"windows_together": flags.peer_windows == "together"}
    variables = environment(flags.device, cores, folder / f"cache-{task}")

    def ours():
        return Side(OURS, sys.executable, "benchmarks.jax_worker", job, variables)

    def theirs(name, compiled):
        return Side(name, flags.torch_python, "benchmarks.torch_worker", job | peer | {"compile": compiled}, variables)

    notes, compiling = [], None
    bar = tqdm(total=flags.repetitions, desc=f"{task}: starting", unit="turn", leave=False)
    with contextlib.ExitStack() as running:
        running.callback(bar.close)
        if not flags.once:
            with ours() as first:
                compiling = {"memory_bytes": first.describe()["memory_bytes"], "first_result_s": first.first_result_s}
        sides = [running.enter_context(ours()), running.enter_context(theirs(EAGER, False))]
        if flags.compile:
            try:
                sides.append(running.enter_context(theirs(COMPILED, True)))
            except UserError as error:
                notes.append(f"{task}: {error}")
        if flags.onnx and task == "forward":
            write_onnx(flags.variant, folder, height, width)
            sides.append(running.enter_context(Side(ONNX, sys.executable, "benchmarks.onnx_worker", job, variables)))
        bar.set_description(task)
        seconds = take_turns(sides, flags.repetitions, bar)
        found = {}
        for side in sides:
            side.save(folder / f"{side.name}.npy")
            found[side.name] = side.describe() | {
                "seconds": seconds[side.name],
                "first_result_s": side.first_result_s,
                "import_memory_bytes": side.import_memory_bytes,
                "compiling": None,
            }

    found[OURS]["compiling"] = compiling
    flops = report.flops_of_image(VARIANTS[flags.variant].gmacs, height * width, train)
    expected = np.load(folder / f"{OURS}.npy")
    for name, record in found.items():
        record["images_per_s"] = flags.batch / report.spread(record["seconds"]).median
        record["flops"] = record["images_per_s"] * flops
        peak = report.peak_flops(record["device"], flags.dtype)
        record["share_of_peak"] = record["flops"] / peak if peak else None
        found_by_us = expected.clip(0, 1) if name == ONNX else expected  # as the exported file clips
        record["difference"] = report.difference(found_by_us, np.load(folder / f"{name}.npy"))
    what = {
        "forward": "forward",
        "tlc": f"forward, TLC of {TLC_WINDOW_PX} (peer: {flags.peer_windows})",
        "train": "training step",
    }[task]
    batch = f", batch {flags.batch}" if flags.batch > 1 else ""
    return {"task": task, "what": f"{what}, {width}x{height}{batch}", "sides": found, "notes": notes}


def take_turns(sides, repetitions: int, bar) -> dict[str, list[float]]:
    """{name: seconds of one call, for each repetition}; each turn goes through all sides, every other one backwards."""
    calls = {}
    for side in sides:
        calls[side.name] = max(1, round(LEAST_REPETITION_S / side.seconds(1)))  # and it warms up: not timed
    seconds = {side.name: [] for side in sides}
    for turn in range(repetitions):
        for side in sides if turn % 2 == 0 else reversed(sides):
            seconds[side.name].append(side.seconds(calls[side.name]))
        bar.update()
    return seconds


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    with errors.reported():
        flags = flags_of(arguments)
        cores = use_cores(flags.threads)
        with tempfile.TemporaryDirectory(prefix="race-") as folder:
            folder = Path(folder)
            write_weights(flags.variant, folder)
            tasks = []
            for task in flags.task:
                tasks.append(race(flags, task, folder, cores))
                write(flags, cores, tasks)  # what there is so far is kept if the next task fails
        print((flags.output / "race.md").read_text())


def write(flags, cores: int, tasks: list[dict]) -> None:
    """Write race.json and race.md with the tasks that are done."""
    described = [side for task in tasks for side in task["sides"].values()]
    record = {
        "date": datetime.date.today().isoformat(),
        "device": described[0]["device"],
        "processor": processor(),
        "versions": {name: version for side in described for name, version in side["versions"].items()},
        "settings": {
            "variant": flags.variant,
            "dtype": flags.dtype,
            "device": flags.device,
            "repetitions": flags.repetitions,
            "threads": cores,
            "batch": flags.batch,
            "peer_windows": flags.peer_windows,
        },
        "tasks": tasks,
    }
    files.write_text(flags.output / "race.json", json.dumps(record, indent=2) + "\n")
    files.write_text(flags.output / "race.md", report.race_tables(record))


if __name__ == "__main__":
    main()
