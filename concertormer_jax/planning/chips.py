"""The devices that programs are compiled for: TPUs and GPUs by name, which need not be there, and those at hand."""

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from concertormer_jax.planning import gpus
from concertormer_jax.runtime.devices import deduplicate_tpu_code
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.peaks import TPU_V4, TPU_V5E, TPU_V5P, TPU_V6E, Peak, peak_of


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip (a TPU's cores together, or a GPU).

    memory_bytes: what a program may take, 0 if not known; peak: None if not known; axes: lengths in the name of a TPU's
    topology; options: of JAX's topology description; note: a sentence on its memory, "" for none.
    """

    name: str
    memory_bytes: int
    peak: Peak | None = None
    axes: int | None = None
    options: dict = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for. name: as the user gave it, such as "v5e:2x4"; compiler_options: XLA's."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]
    compiler_options: dict = dataclasses.field(default_factory=dict)


# Memory: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, TPU_V4, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip("TPU v5e", 16 * 2**30, TPU_V5E, 2),
    "v5p": Chip("TPU v5p", 95 * 2**30, TPU_V5P, 3),
    "v6e": Chip("TPU v6e", 32 * 2**30, TPU_V6E, 2),
}
EXAMPLES = "v5e:2x4, v6e:4x4, v4:2x2x1 or v5p:2x2x2"


def tpu(name: str) -> Target:
    """Return the target for a TPU such as "v5e:2x4", which need not be there.

    Raises UserError for a chip or topology that is not known, and when the package libtpu is missing.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    chip = CHIPS.get(found.group(1)) if found else None
    lengths = [int(length) for length in found.group(2).split("x")] if found else []
    if chip is None or len(lengths) != chip.axes or min(lengths) < 1:
        known = ", ".join(CHIPS)
        raise UserError(f"--tpu={name} is unknown; give a chip ({known}) and its topology, such as {EXAMPLES}")
    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine may be in use, and is not needed
    # With these, libtpu does not look for hardware, and lets other processes load it at the same time.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    deduplicate_tpu_code()
    host = [min(2, length) for length in lengths[:2]] + [1]
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=host, **chip.options
        )
    except (RuntimeError, NotImplementedError) as error:
        if "INVALID_ARGUMENT" in str(error):
            reason = str(error).partition("INVALID_ARGUMENT: ")[2].splitlines()[0]
            raise UserError(f"--tpu={name}: there is no such topology ({reason}); try {EXAMPLES}") from error
        raise UserError(
            f'--tpu={name} needs the package libtpu that fits JAX {jax.__version__}: pip install "jax[tpu]" ({error})'
        ) from error
    return Target(name, chip, tuple(topology.devices))


def gpu(name: str) -> Target:
    """Return the target for a GPU such as "rtx4090", which need not be there.

    Raises UserError for a name that is not known, and when JAX's compiler for GPUs is missing.
    """
    found = gpus.gpu(name)
    chip = Chip(found.name, gpus.usable_bytes(found), found.peak, note=gpus.memory_note(found))
    jax.config.update("jax_platforms", "cpu")  # a GPU of this machine may be in use, and is not needed
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA warns of compilations that take minutes
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=gpus.target_config(found), topology="1x1x1"
        )
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f'--gpu={name} needs JAX\'s compiler for GPUs, but no GPU: pip install "jax[cuda13]=={jax.__version__}", '
            f"best in an environment of its own ({error})"
        ) from error
    return Target(name, chip, tuple(topology.devices), gpus.COMPILER_OPTIONS)


def own(kind: str) -> Target:
    """Return the devices of this machine. kind: "cpu" or "gpu". Raises UserError when there is none."""
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")  # otherwise JAX looks for a TPU first if libtpu is installed
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # nothing runs, and several processes use the GPU
    try:
        devices = jax.devices(kind)
    except RuntimeError as error:
        raise UserError(f"--device={kind}: JAX finds none on this machine; see jax.devices()") from error
    statistics = devices[0].memory_stats() or {}
    memory = statistics.get("bytes_limit", 0)
    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return Target(kind, Chip(devices[0].device_kind, memory, peak_of(devices[0])), tuple(devices))


def target(name: str) -> Target:
    """Return `tpu(name)`, `own(name)` or `gpu(name)`, for a name such as "v5e:2x4", "cpu" or "rtx4090"."""
    if ":" in name:
        return tpu(name)
    return own(name) if name in ("cpu", "gpu") else gpu(name)


def count(name: str) -> int:
    """Return the number of chips of a TPU such as "v5e:2x4"."""
    return math.prod(int(length) for length in name.partition(":")[2].split("x"))


def larger(name: str, most: int) -> list[str]:
    """Return TPUs of the same chip with 2, 4, ... times as many chips as `name`, at most `most` chips."""
    chip, _, topology = name.partition(":")
    lengths = [int(length) for length in topology.split("x")]
    found = []
    while 2 * math.prod(lengths) <= most:
        lengths[lengths.index(min(lengths))] *= 2
        lengths.sort()
        found.append(f"{chip}:{'x'.join(map(str, lengths))}")
    return found
