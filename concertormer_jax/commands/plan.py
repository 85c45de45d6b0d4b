"""Plan a run without the hardware: `python -m concertormer_jax plan --config=configs/gopro.py --tpu=v5e:2x4`.

Compiles the training step of every phase and the evaluation with TLC ahead of time for a TPU (--tpu, package libtpu,
pip install "jax[tpu]") or a GPU (--gpu, pip install "jax[cuda13]") that need not be there, or for this machine's own
device (--device=cpu, --device=gpu), and says what fits, where the memory goes, and how long it takes at least, for TPUs
also how long the compiler thinks that it takes. Times are estimates; nothing is run.
"""

import contextlib
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from concertormer_jax.commands.flags import define_config, parse_with_config, running
from concertormer_jax.inference.sharding import SETTINGS, SHARD_HELP
from concertormer_jax.planning import chips, compilation, fitting, gpus, report, schedule_report
from concertormer_jax.planning.compilation import Plan, compile_apart
from concertormer_jax.planning.fitting import LargestBatch, find_largest
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.outputs import require_file_writable
from concertormer_jax.runtime.paths import local_path
from concertormer_jax.runtime.values import Whole

CONFIG = define_config()
TPU = flags.DEFINE_string("tpu", None, f"A TPU and its topology: {chips.EXAMPLES}.")
GPU = flags.DEFINE_string("gpu", None, f"One GPU: {', '.join(gpus.GPUS)}.")
DEVICE = flags.DEFINE_enum("device", None, ["cpu", "gpu"], "This machine's own device in place of --tpu or --gpu.")
ONLY = flags.DEFINE_enum("only", None, ["train", "evaluate"], "Plan one of the two; the default is both.")
EVALUATE = flags.DEFINE_string("evaluate", "1280x720", "WIDTHxHEIGHT of the evaluated pictures in pixels.")
TLC = flags.DEFINE_string("tlc", "auto", "Window of the evaluation: auto (that of evaluate.py), off or pixels.")
FORWARD = flags.DEFINE_string("forward", None, "WIDTHxHEIGHT: plan only the bare network, on one picture.")
SHARD = flags.DEFINE_enum("shard", SETTINGS[0], SETTINGS, "Of --forward and the evaluation: " + SHARD_HELP + ".")
PROFILE = flags.DEFINE_integer("profile", 0, "Print tables of where the cycles go, of this many rows.", 0, 10**6)
SCHEDULE = flags.DEFINE_bool(
    "schedule", False, "Read the compiler's final schedule, of TPUs only: cycles of every operation, and what binds."
)
LARGEST = flags.DEFINE_bool("largest_batch", False, "Find the largest batch of each phase that fits.")
TRY = flags.DEFINE_bool("try_suggestions", False, "Compile suggestions for what does not fit, until one fits.")
OUTPUT = flags.DEFINE_string("output", None, "A file for the plan as JSON.")
NETWORK, EVALUATION = SPLIT = ("the network", "the evaluation")  # programs whose picture may be split over the devices
SIDE_PX = Whole(1, 32768)  # of a picture
flags.mark_flags_as_required(["config"])


def main() -> None:
    """Run the command described at the top of this file."""
    parse_with_config(__name__)
    logging.getLogger("jax").setLevel(logging.ERROR)
    with running():
        plan(CONFIG.value)


def plan(config: ConfigDict) -> None:
    """Plan `config` as the flags say, and print and write the result. Raises UserError for flags that do not fit."""
    targets = [(TPU.value, chips.tpu), (GPU.value, chips.gpu), (DEVICE.value, chips.own)]
    named = [(name, find) for name, find in targets if name is not None]
    if len(named) != 1:
        raise UserError("give one of --tpu=NAME:TOPOLOGY, --gpu=NAME and --device=cpu|gpu")
    output = None if OUTPUT.value is None else local_path(OUTPUT.value, "--output")
    if SCHEDULE.value and not TPU.value:
        raise UserError("--schedule is that of a TPU; give --tpu=NAME:TOPOLOGY, which need not be there")
    _require_of_use()
    if LARGEST.value and (FORWARD.value or ONLY.value == "evaluate"):
        raise UserError("--largest_batch is that of the training; leave out --forward and --only=evaluate")
    tasks = _tasks(config)
    if output:
        require_file_writable(output)
    ((name, find),) = named
    target = find(name)
    memory = 0 if DEVICE.value == "cpu" else target.chip.memory_bytes
    if ONLY.value != "evaluate" and not FORWARD.value:
        compilation.require_trainable(config, len(target.devices))
    print(report.heading(target), flush=True)
    entries = []
    for what, make in tasks:
        if what in SPLIT:
            make = partial(make, shard=SHARD.value, memory_bytes=memory)
        found = _compiled(what, make, config, target.name, SCHEDULE.value)
        suggestions = [] if found.fits else _suggestions(what, make, config, found, target)
        print("\n" + report.describe(found, target.chip, suggestions), flush=True)
        if found.tables:
            print("\n" + report.tables(found), flush=True)
        if found.schedule:
            print("\n" + schedule_report.tables(found.schedule), flush=True)
        largest = None
        if LARGEST.value and found.kind == "train":
            largest = _largest_batch(what, make, config, found, target)
            print(report.describe_largest(largest), flush=True)
        entries.append(report.as_json(found, target.chip, suggestions, largest))
    if output is not None:
        content = {"target": target.name, "devices": len(target.devices), "programs": entries}
        write_text(output, json.dumps(content, indent=2) + "\n")
        print(f"\nThe plan is in {output}.")


def _require_of_use() -> None:
    """Raise UserError for flags of programs that the other flags leave out."""
    for flag, excludes, names in (
        ("--forward", FORWARD.value, ["only", "evaluate", "tlc"]),
        ("--only=train", ONLY.value == "train", ["evaluate", "tlc", "shard"]),
    ):
        if excludes and (given := [f"--{name}" for name in names if flags.FLAGS[name].present]):
            raise UserError(f"{' and '.join(given)} would do nothing beside {flag}; leave out one or the other")


def _tasks(config: ConfigDict) -> list[tuple[str, partial]]:
    """The programs that the flags ask for, as (name, function of (config, mesh) that traces it)."""
    if FORWARD.value:
        width, height = _size("forward", FORWARD.value)
        return [(NETWORK, partial(compilation.forward_task, width=width, height=height))]
    width, height = _size("evaluate", EVALUATE.value)
    tasks = []
    if ONLY.value != "evaluate":
        for phase in compilation.training_phases(config):
            tasks.append((f"phase {phase.number}", partial(compilation.training_task, number=phase.number)))
    if ONLY.value != "train":
        compilation.evaluation_window(config, TLC.value)  # a wrong one is refused before anything is compiled
        evaluation = partial(compilation.evaluation_task, width=width, height=height, tlc=TLC.value)
        tasks.append((EVALUATION, evaluation))
    return tasks


def _size(flag: str, text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not all(re.fullmatch("[0-9]{1,5}", side) and int(side) in SIDE_PX for side in (width, height)):
        raise UserError(f"--{flag}={text}: must be WIDTHxHEIGHT, each {SIDE_PX} pixels, such as 1280x720")
    return int(width), int(height)


def _compiled(what: str, make: Callable, config: ConfigDict, target: str, schedule: bool = False) -> Plan:
    with _progress(f"compiling {what} for {target}" + (" and reading its schedule" if schedule else "")):
        return compile_apart(make, config, target, PROFILE.value, schedule)


@contextlib.contextmanager
def _progress(text: str) -> Generator[None]:
    """Show a line with the time so far while the compiler works, and remove it at the end."""
    done = threading.Event()
    with tqdm(bar_format="{desc}: {elapsed}", desc=text, leave=False, disable=None) as bar:

        def tick() -> None:
            while not done.wait(1):
                bar.refresh()

        if bar.disable:  # not a terminal
            print(f"{text} ...", file=sys.stderr, flush=True)
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _largest_batch(
    what: str, make: partial, config: ConfigDict, found: Plan, target: chips.Target
) -> LargestBatch | None:
    """The largest batch of the phase that `make` traces, of which `found` is the plan."""

    def compile_batch(images: int) -> Plan:
        changed = fitting.with_batch(config, make.keywords["number"], images)
        return _compiled(f"{what} with a batch of {images}", make, changed, target.name)

    return find_largest(found, len(target.devices) * config.train.accumulation, compile_batch)


def _suggestions(what: str, make: Callable, config: ConfigDict, found: Plan, target: chips.Target) -> list[str]:
    """Sentences on changes that might help; with --try_suggestions, up to the first that does."""
    if found.kind == "train":
        excess = found.memory_total / found.memory_limit if found.memory_limit else 1.0
        proposals = fitting.suggestions_for_training(config, target, excess)
    else:
        proposals = fitting.suggestions_for_forward(config) if found.kind == "forward" else []
    if not TRY.value:
        return [f"try {proposal.flags}" for proposal in proposals]
    sentences = []
    for proposal in proposals:
        changed = fitting.with_suggestion(config, proposal)
        attempt = _compiled(f"{what} with {proposal.flags}", make, changed, proposal.tpu or target.name)
        if attempt.fits:
            needs = f"{attempt.memory_total / 2**30:.2f} GiB"
            return [*sentences, f"{proposal.flags} fits ({needs} on each chip; compiled)"]
        sentences.append(f"{proposal.flags} does not fit either: {attempt.reason}")
    return sentences
